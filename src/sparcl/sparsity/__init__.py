"""What is computed at all: TDM (weights), DDR (samples), DGM (gradients), and SparCL, the three together."""

from sparcl.sparsity.ddr import DDR as DDR
from sparcl.sparsity.dgm import DGM as DGM
from sparcl.sparsity.importance import Losses as Losses
from sparcl.sparsity.patterns import Pattern as Pattern
from sparcl.sparsity.sparcl import SparCL as SparCL
from sparcl.sparsity.sparsifier import Sparsifier as Sparsifier
from sparcl.sparsity.tdm import TDM as TDM
