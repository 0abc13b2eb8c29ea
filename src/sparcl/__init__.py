"""sparcl: continual learning whose sparsity is real.

A `Learner` joins a model, a method (how it remembers) and a sparsifier (what is computed at all), and learns the
tasks of a stream one after another. TDM, DDR and DGM work alone in a loop of your own, too.
"""

import warnings as _warnings
from pathlib import Path as _Path

from sparcl import starting as _starting

_quiet = _starting.begin()

from sparcl import methods as methods
from sparcl import nn as nn
from sparcl import overlaid as _overlaid
from sparcl import streams as streams
from sparcl.errors import SparclError as SparclError
from sparcl.learner import Learner as Learner
from sparcl.learner.accuracy import Accuracy as Accuracy
from sparcl.learner.online import Anytime as Anytime
from sparcl.learner.online import online as online
from sparcl.run.fit import Fit as Fit
from sparcl.run.fit import fit as fit
from sparcl.sparsity import DDR as DDR
from sparcl.sparsity import DGM as DGM
from sparcl.sparsity import TDM as TDM
from sparcl.sparsity import Losses as Losses
from sparcl.sparsity import SparCL as SparCL

_starting.end(_quiet)

__version__ = "0.2.0"

if _said := _overlaid.warning(_Path(__file__).parents[1]):
    _warnings.warn(_said, stacklevel=2)
