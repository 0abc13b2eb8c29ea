"""BatchNorm with ReLU and the residual sum in one pass over memory, where the native backend computes it.

Legend: N batch, C channels.
"""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.kernels import ops


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
    """`nn.BatchNorm2d` on batch-last tensors that adds a residual and applies ReLU on the way.

    Attributes:
        relu: whether ReLU is always applied (a ReLU that followed has been merged into this layer).
    """

    relu: bool = False

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
            relu or self.relu,
            tracked,
        )


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
