"""The native engine: compact sparse convolutions on batch-last tensors. Importable where the compiled part is missing.

`ops` holds the autograd functions, `block` that of residual blocks, one or a chain, `layout` says what batch-last is,
`index` turns masks into positions.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sparcl.errors import ConfigError

_native: Any = None
try:
    _native = import_module("sparcl.kernels._native")
except ImportError as error:
    _reason = (
        f"the compiled part of sparcl is missing ({error}); where there are a C++17 compiler and Python's headers "
        "(on Debian g++ and python3-dev), installing sparcl-edge again builds it"
    )
else:
    _reason = ""


def available() -> bool:
    """Whether the compiled part is there and can run on this processor."""
    return not why_unavailable()


def why_unavailable() -> str:
    """One line that says why `available()` is false; empty where it is true."""
    if _native is None:
        return _reason
    try:
        _native.isa()
    except ValueError as error:
        return str(error)
    return ""


def isa() -> str:
    """The instruction set in use: avx512, avx2, neon or plain. `SPARCL_ISA` overrides the processor's best.

    Raises:
        ConfigError: the compiled part is missing, or SPARCL_ISA names a set that this processor does not have.
    """
    if why_unavailable():
        raise ConfigError(why_unavailable())
    return str(_native.isa())


def available_isas() -> list[str]:
    """The instruction sets that this processor can run, best first; empty where the compiled part is missing."""
    return [] if _native is None else str(_native.available_isas()).split(", ")


def counters() -> dict[str, int]:
    """Multiply-adds done since `reset_counters()`: forward, input_gradient, weight_gradient.

    One nonzero at one output position for one sample is one multiply-add. Positions where the kernel reaches into the
    zero padding are computed and counted like the others, as the usual FLOP count of a dense convolution does; idle
    lanes of a vector are not. The weight gradient is exactly chosen nonzeros × output positions × batch.
    """
    return dict(_native.counters()) if _native is not None else {}


def reset_counters() -> None:
    """Set all counters to zero."""
    if _native is not None:
        _native.reset_counters()
