"""BatchNorm with ReLU and the residual sum in one pass over memory, where the native backend computes it.

Legend: N batch, C channels.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparcl.kernels import ops
from sparcl.nn.layers import is_watched


def norm_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(x) + residual): in one pass where `norm` is a `BatchLastNorm2d`, as ordinary PyTorch elsewhere.

    A network that calls this where it would write `F.relu(bn(x))` is faster once converted, and the same before.

    Args:
        norm: a normalisation layer.
        x, residual: [N, C, H, W].
    """
    if isinstance(norm, BatchLastNorm2d):
        fused: Tensor = norm(x, residual, relu=True)
        return fused
    y = norm(x)
    return F.relu(y if residual is None else y + residual)


class BatchLastNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on batch-last tensors that can add a residual and apply ReLU on the way."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """The same layer, sharing its parameters and running statistics."""
        layer = cls.__new__(cls)
        layer.__dict__ = dict(norm.__dict__)
        return layer

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        tracked = self.num_batches_tracked if self.training else None
        factor = self.momentum or 0.0
        if self.momentum is None and tracked is not None:  # a cumulative mean
            factor = 1.0 / (float(tracked) + 1.0)
        return ops.batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.training,
            factor,
            self.eps,
            residual,
            relu,
            tracked,
        )


class MergingSequential(nn.Sequential):
    """An `nn.Sequential` that computes a ReLU with the BatchNorm it follows, where nobody watches either of them.

    Its modules are what they were, so code that goes through them itself, takes a part or uses one twice is right.
    """

    def forward(self, input: Any) -> Any:
        if _has_any_global_hook():  # type: ignore[no-untyped-call]
            return super().forward(input)  # type: ignore[no-untyped-call]
        merged = False
        for module, follower in itertools.pairwise([*self, None]):
            if merged:  # it is computed already
                merged = False
                continue
            merged = is_norm_relu(module, follower) and not is_watched(module) and not is_watched(follower)
            input = module(input, relu=True) if merged else module(input)
        return input

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A class that was made here is found again by the one it was made of."""
        return _unfilled, (type(self).__bases__[1],), vars(self)


def merge_relu(sequence: nn.Sequential) -> None:
    """Make a sequence compute each ReLU with the BatchNorm it follows, unless it has a `forward` of its own."""
    modules = list(sequence)
    kind: Any = type(sequence)
    usual = kind.forward is nn.Sequential.forward
    if usual and any(is_norm_relu(*pair) for pair in itertools.pairwise(modules)):
        sequence.__class__ = _merging(kind)


@functools.cache
def _merging(kind: Any) -> Any:
    """The `MergingSequential` that is a `kind` for all else, its name included."""
    name = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (MergingSequential, kind), name)


def _unfilled(kind: Any) -> Any:
    return nn.Module.__new__(_merging(kind))


def is_norm_relu(module: nn.Module, follower: nn.Module | None) -> bool:
    """Whether two modules in a row are a BatchNorm that can apply the ReLU behind it."""
    return isinstance(module, BatchLastNorm2d) and type(follower) is nn.ReLU


class BatchLastAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` on batch-last tensors."""

    def forward(self, input: Tensor) -> Tensor:
        size = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
        rows, columns = (own or whole for own, whole in zip(size, input.shape[-2:], strict=True))
        return ops.adaptive_average_pool(input, (rows, columns))


class BatchLastAvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` on batch-last tensors, without padding."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.average_pool(input, pair(self.kernel_size), pair(self.stride))


class BatchLastMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` on batch-last tensors, without dilation."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.max_pool(input, pair(self.kernel_size), pair(self.stride), pair(self.padding))


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
