"""What is refused leaves everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Kept = tuple[dict[str, Any], dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]
"""An object's attributes, a copy of them, and the dicts among them with a copy of each."""


@contextlib.contextmanager
def left_as_it_was(model: nn.Module, *parts: object, copies: bool = False) -> Iterator[None]:
    """Whatever is raised in here, a model is then what it was: its modules, hooks and modes, and its tensors.

    Args:
        parts: objects that get their attributes back, and so do the sparcl objects that these hold.
        copies: what is written into the tensors is undone as well; it takes a copy of them. Else they are themselves
            what is kept.
    """
    kinds = [(module, type(module), _kept(module)) for module in model.modules()]
    tensors = [
        (t, t.data, t.data.clone() if copies else None, t.requires_grad)
        for t in (*model.parameters(), *model.buffers())
        if not is_lazy(t)
    ]
    others = [_kept(part) for part in _with_inner(parts)]
    try:
        yield
    except BaseException:
        for module, kind, kept in kinds:
            module.__class__ = kind
            _put_back(kept)
        for tensor, data, copy, moves in tensors:
            if tensor.data.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                set_data(tensor, data)
            if copy is not None:
                tensor.data.copy_(copy)
            tensor.requires_grad_(moves)
        for kept in others:
            _put_back(kept)
        raise


def set_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Give a tensor other numbers, of another shape too; it stays the object that others hold."""
    tensor.grad = None
    tensor.data = torch.empty(0, dtype=torch.float64)  # PyTorch forgets the gradient accumulator of the old shape
    tensor.data = data


def _with_inner(parts: tuple[object, ...]) -> Iterator[object]:
    for part in parts:
        yield part
        yield from (
            v for v in vars(part).values() if type(v).__module__.startswith("sparcl.") and hasattr(v, "__dict__")
        )


def _kept(holder: object) -> Kept:
    now = vars(holder)
    return now, dict(now), [(inner, dict(inner)) for inner in now.values() if isinstance(inner, dict)]


def _put_back(kept: Kept) -> None:
    now, before, inner = kept
    for entries, kept_entries in [*inner, (now, before)]:
        entries.clear()
        entries.update(kept_entries)
