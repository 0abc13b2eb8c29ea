"""Batch-last tensors: logical [N, C, H, W] (or [N, C, L], [N, F]), in memory [C][H][W][N] (or [C][L][N], [F][N]).

Batch-last is a matter of strides, not of shape: every PyTorch operator gives right results on such a tensor,
elementwise ones keep the strides, and the layers of this package know them.

The tensors that the kernels make are not views: autograd adds a second gradient in place only to a tensor that owns its
memory alone. That memory is the engine's own (csrc/engine/arena.cpp says why).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.kernels import _native

# N batch, C channels, L length, F features


def is_batch_last(x: Tensor) -> bool:
    """Whether the kernels can read `x` as it is: float32 [N, C, H, W], [N, C, L] or [N, F] on the CPU, and batch-last.

    Strides of axes of size 1 are ignored. A tensor with PyTorch's negative bit is not what its memory says.
    """
    return bool(_native.is_activation(x))


class _ToBatchLast(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return repacked(x)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]  # a change of strides changes no number


def repacked(x: Tensor) -> Tensor:
    """`x` [N, C, H, W], [N, C, L] or [N, F] in batch-last memory; itself where it already is. Not differentiable."""
    if _native.is_activation(x):
        return x
    x = x.resolve_neg()  # some of PyTorch's tensors are negated in name only: the kernels read memory
    if not x.is_contiguous():
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    y: Tensor = _native.batch_last(x, torch.get_num_threads())
    return y


def to_batch_last(x: Tensor) -> Tensor:
    """The same tensor, [N, C, H, W], [N, C, L] or [N, F] in float32, with batch-last memory; differentiable.

    Raises:
        ConfigError: another number of axes, another dtype, or not on the CPU.
    """
    if _native.is_activation(x):
        return x
    check(x, "the input")
    y: Tensor = _ToBatchLast.apply(x)  # type: ignore[no-untyped-call]
    return y


def from_batch_last(x: Tensor) -> Tensor:
    """The same tensor, contiguous in PyTorch's default order [N, C, H, W]; differentiable."""
    return x.contiguous()


def check(x: Tensor, name: str) -> None:
    """Refuse what the kernels cannot read, in one line; strides may be any."""
    if _native.is_activation(x):
        return
    if x.dtype != torch.float32:
        raise ConfigError(f"{name} of a native layer must be torch.float32, not {x.dtype}")
    if x.device.type != "cpu":
        raise ConfigError(f"{name} of a native layer must be on the CPU, not on {x.device}")
    if not 2 <= x.dim() <= 4:
        raise ConfigError(
            f"{name} of a native layer must have 2 axes [N, F], 3 axes [N, C, L] or 4 axes [N, C, H, W], not {x.dim()}"
        )
