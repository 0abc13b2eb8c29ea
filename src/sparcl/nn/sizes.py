"""Sizes that a network can have: PyTorch makes layers of nothing, and of negative numbers a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparcl.errors import ConfigError
from sparcl.whole import is_whole


def check_sizes(network: nn.Module, classes: int, **others: int) -> None:
    """Raise ConfigError unless a network can have so many classes, and the `others`, each by its name.

    No classes are those of a head that has yet to grow.
    """
    name = type(network).__name__
    if classes < 0:
        raise ConfigError(f"classes {classes} is not allowed for {name}; use 1 or more (0 for a head that grows)")
    for label, value in others.items():
        if value < 1:
            raise ConfigError(f"{label} {value} is not allowed for {name}; use 1 or more")


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample, as Python's own numbers; ConfigError where it can be none."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(map(is_whole, sizes)):
        raise ConfigError(f"input shape {shape!r:.40} is not allowed; use the sizes of a sample, as in (3, 32, 32)")
    return tuple(map(int, sizes))
