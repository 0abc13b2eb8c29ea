"""How it is learned and remembered: one method a file, `METHODS` by name."""

from sparcl import named, sparsity
from sparcl.errors import ConfigError, unknown
from sparcl.methods.agem import AGEM as AGEM
from sparcl.methods.buffer import ReservoirBuffer as ReservoirBuffer
from sparcl.methods.der import DER as DER
from sparcl.methods.derpp import DERpp as DERpp
from sparcl.methods.er import ER as ER
from sparcl.methods.er_ace import ERACE as ERACE
from sparcl.methods.ewc import EWC as EWC
from sparcl.methods.fdr import FDR as FDR
from sparcl.methods.finetune import Finetune as Finetune
from sparcl.methods.icarl import ICaRL as ICaRL
from sparcl.methods.joint import Joint as Joint
from sparcl.methods.lps import LPS as LPS
from sparcl.methods.lwf import LwF as LwF
from sparcl.methods.method import Batch as Batch
from sparcl.methods.method import Host as Host
from sparcl.methods.method import Method as Method
from sparcl.methods.method import RehearsalMethod as RehearsalMethod
from sparcl.methods.packnet import PackNet as PackNet

_KINDS: tuple[type[Method], ...] = (Finetune, Joint, ER, ERACE, DER, DERpp, EWC, LwF, AGEM, ICaRL, FDR, PackNet, LPS)
METHODS: dict[str, type[Method]] = {method.name: method for method in _KINDS}


def find(name: str) -> type[Method]:
    """The method's class by its name, or your own by `package.module:Class`; ConfigError lists the names."""
    if named.is_own(name):
        return named.kind("method", name, Method)
    if name not in METHODS:
        raise ConfigError(unknown("method", name, [*METHODS, "package.module:Class"]))
    return METHODS[name]


def has_buffer(kind: type[Method]) -> bool:
    """Whether a method takes `buffer_size`."""
    return named.takes(kind, "buffer_size")


def check_combination(method: str, sparsifier: str) -> None:
    """Raise ConfigError if the method cannot work under the sparsifier, both by name."""
    kind = sparsity.find(sparsifier)
    find(method).check(kind.name, prunes=kind.prunes, moves=kind.moves)
