"""What is computed at all: TDM (weights), DDR (samples), DGM (gradients), and SparCL, the three together.

The rivals (static, SET, SNIP, RigL) are sparse in weights alone. `SPARSIFIERS` by name.
"""

from collections.abc import Callable
from typing import cast

from sparcl import named
from sparcl.errors import ConfigError, unknown
from sparcl.sparsity.ddr import DDR as DDR
from sparcl.sparsity.dgm import DGM as DGM
from sparcl.sparsity.importance import Losses as Losses
from sparcl.sparsity.patterns import Pattern as Pattern
from sparcl.sparsity.rigl import RigL as RigL
from sparcl.sparsity.set import SET as SET
from sparcl.sparsity.snip import SNIP as SNIP
from sparcl.sparsity.sparcl import SparCL as SparCL
from sparcl.sparsity.sparsifier import Sparsifier as Sparsifier
from sparcl.sparsity.static import Static as Static
from sparcl.sparsity.tdm import TDM as TDM

_KINDS: tuple[type[Sparsifier], ...] = (Sparsifier, SparCL, Static, SET, SNIP, RigL)
SPARSIFIERS: dict[str, Callable[..., Sparsifier]] = {kind.name: kind for kind in _KINDS}
"""By name: `dense` takes nothing, every other its sparsity first."""


def find(name: str) -> type[Sparsifier]:
    """The sparsifier's class by its name, or your own by `package.module:Class`; ConfigError lists the names."""
    if named.is_own(name):
        return named.kind("sparsifier", name, Sparsifier)
    if name not in SPARSIFIERS:
        raise ConfigError(unknown("sparsifier", name, [*SPARSIFIERS, "package.module:Class"]))
    return cast(type[Sparsifier], SPARSIFIERS[name])
