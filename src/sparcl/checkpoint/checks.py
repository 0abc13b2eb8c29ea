"""What loaded values must be, checked before they are used: a checkpoint may come from a stranger."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparcl.errors import CheckpointError, ConfigError, one_line, out_of_memory


def keys(value: Any, expected: Collection[str], what: str) -> Mapping[str, Any]:
    """A dict with exactly these keys."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{what} is missing from the checkpoint")
    for label, names in (("lacks", set(expected) - set(value)), ("has the unknown", set(value) - set(expected))):
        if names:
            raise CheckpointError(f"{what} in the checkpoint {label} {min(names)!r:.80}")
    return value


def integer(value: Any, what: str, least: int = 0, most: int = 1 << 62) -> int:
    """A whole number in a range."""
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"{what} in the checkpoint is {value!r:.40}; it must be a whole number from {least} to {most}"
        )
    return value


def tensor(value: Any, what: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor of a dtype and shape (None: any size there)."""
    fits = isinstance(value, Tensor) and value.dtype == dtype and value.dim() == len(shape)
    if not fits or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.40}"
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(f"{what} in the checkpoint is {found}; it must be {dtype} [{wanted}]")
    assert isinstance(value, Tensor)
    return value


def within(value: Tensor, what: str, least: int, most: int) -> Tensor:
    """An integer tensor whose entries are all in a range."""
    if value.numel() and not (least <= int(value.min()) and int(value.max()) <= most):
        raise CheckpointError(f"{what} in the checkpoint has entries outside {least} to {most}")
    return value


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a part raises over a state that is not its own becomes one line."""
    try:
        yield
    except (
        ConfigError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
        AssertionError,
    ) as e:
        if out_of_memory(e):
            raise  # no fault of the state's
        raise CheckpointError(f"{what} in the checkpoint does not fit: {one_line(e)}") from e
