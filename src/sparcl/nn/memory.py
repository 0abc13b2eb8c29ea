"""The order in which a model's tensors lie in memory: PyTorch picks its kernels, hence the bits of a result, by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Strides = Sequence[int]


def own_memory(model: nn.Module) -> None:
    """Give every parameter and buffer memory of its own, without gaps, where one is a view that has not (expanded or
    cut out of a larger tensor): an optimizer can write into no other. They stay the objects they were."""
    for tensor in _tensors(model):
        if not is_dense(tensor.stride(), tensor.shape):
            tensor.data = tensor.data.contiguous()


def make_contiguous(model: nn.Module) -> None:
    """Give every parameter and buffer PyTorch's default order, whatever it had; they stay the objects they were."""
    for tensor in _tensors(model):
        if not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()


def unusual_strides(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The strides of those tensors that do not lie in the default order, by name."""
    return {name: list(t.stride()) for name, t in tensors.items() if t.stride() != usual_strides(t.shape)}


@torch.no_grad()
def lay_out(tensor: Tensor, strides: Strides) -> None:
    """Make a tensor lie in memory with these (dense) strides; it stays the object it was, with the same numbers."""
    if tensor.stride() != tuple(strides):
        tensor.data = torch.empty_strided(tensor.shape, tuple(strides), dtype=tensor.dtype, device=tensor.device).copy_(
            tensor
        )


def usual_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a new tensor of this shape, PyTorch's default order."""
    return tuple(math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


def is_dense(strides: Strides, shape: Sequence[int]) -> bool:
    """Whether strides put each element of a shape in a place of its own, and leave no place between them empty."""
    if 0 in shape:
        return True
    step = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != step:
                return False
            step *= size
    return True


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor) and tensor.layout == torch.strided:
            yield tensor
