"""BatchNorm with ReLU and the residual sum in one pass over memory, where the native backend computes it.

Legend: N batch, C channels, L length.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from sparcl.errors import ConfigError
from sparcl.kernels import ops
from sparcl.nn.layers import is_watched


def norm_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(x) + residual): in one pass where `norm` is a `BatchLastNorm`, as ordinary PyTorch elsewhere.

    A network that calls this where it would write `F.relu(bn(x))` is faster once converted, and the same before.

    Args:
        norm: a normalisation layer.
        x, residual: [N, C, H, W], [N, C, L] or [N, C].
    """
    if isinstance(norm, BatchLastNorm):
        fused: Tensor = norm(x, residual, relu=True)
        return fused
    y = norm(x)
    return F.relu(y if residual is None else y + residual)


class BatchLastNorm(_BatchNorm):
    """BatchNorm on batch-last tensors that can add a residual and apply ReLU on the way."""

    @classmethod
    def of(cls, norm: nn.Module) -> Self:
        """The same layer, sharing its parameters and running statistics."""
        layer = cls.__new__(cls)
        layer.__dict__ = dict(norm.__dict__)
        return layer

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        return _normalised(self, input, residual, relu)


def _normalised(norm: _BatchNorm, input: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    tracked = norm.num_batches_tracked if norm.training else None
    factor = norm.momentum or 0.0
    if norm.momentum is None and tracked is not None:  # a cumulative mean
        factor = 1.0 / (float(tracked) + 1.0)
    return ops.batch_norm(
        input,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.training,
        factor,
        norm.eps,
        residual,
        relu,
        tracked,
    )


class BatchLastNorm2d(BatchLastNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`, batch-last. [N, C, H, W]."""

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if input.dim() == 3:
            raise ConfigError("BatchNorm2d needs an input of 4 axes [N, C, H, W], not 3")
        return super().forward(input, residual, relu)


class BatchLastNorm1d(BatchLastNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`, batch-last on series [N, C, L]. [N, C], the result of a linear layer, is PyTorch's."""

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if input.dim() == 3:
            return super().forward(input, residual, relu)
        y = nn.BatchNorm1d.forward(self, input)
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y


class BatchLastNormAct(nn.Module):
    """timm's `BatchNormAct2d` on batch-last tensors: BatchNorm, then its modules `drop` and `act`.

    The class of a module is made by `_as`, so that it is a `BatchNormAct2d` for all else.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        norm = cast(_BatchNorm, self)
        if x.dim() != 4:
            raise ConfigError(f"BatchNormAct2d needs an input of 4 axes [N, C, H, W], not {x.dim()}")
        relu = type(self.act) is nn.ReLU and type(self.drop) is nn.Identity
        if relu and not (is_watched(self.act) or is_watched(self.drop) or _has_any_global_hook()):  # type: ignore[no-untyped-call]
            return _normalised(norm, x, None, True)
        y: Tensor = self.act(self.drop(_normalised(norm, x, None, False)))
        return y

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A class that was made here is found again by the one it was made of."""
        return _unfilled, (BatchLastNormAct, type(self).__bases__[1]), vars(self)


def is_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's, told by its name: timm is not asked for."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("timm.layers.norm_act", "BatchNormAct2d") and (
        isinstance(module, nn.BatchNorm2d) and not isinstance(module, BatchLastNormAct)
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
        return _unfilled, (MergingSequential, type(self).__bases__[1]), vars(self)


def merge_relu(sequence: nn.Sequential) -> None:
    """Make a sequence compute each ReLU with the BatchNorm it follows, unless it has a `forward` of its own."""
    modules = list(sequence)
    kind: Any = type(sequence)
    usual = kind.forward is nn.Sequential.forward
    if usual and any(is_norm_relu(*pair) for pair in itertools.pairwise(modules)):
        sequence.__class__ = _as(MergingSequential, kind)


@functools.cache
def _as(ours: Any, kind: Any) -> Any:
    """The class that computes as `ours` and is a `kind` for all else, its name included."""
    name = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (ours, kind), name)


def _unfilled(ours: Any, kind: Any) -> Any:
    return nn.Module.__new__(_as(ours, kind))


def is_norm_relu(module: nn.Module, follower: nn.Module | None) -> bool:
    """Whether two modules in a row are a BatchNorm that can apply the ReLU behind it."""
    return isinstance(module, BatchLastNorm) and type(follower) is nn.ReLU


class BatchLastAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` on batch-last tensors."""

    def forward(self, input: Tensor) -> Tensor:
        size = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
        rows, columns = (own or whole for own, whole in zip(size, input.shape[-2:], strict=True))
        return ops.adaptive_average_pool(input, (rows, columns))


class BatchLastAvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` on batch-last tensors, without padding."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.average_pool(input, sizes(self.kernel_size, 2), sizes(self.stride, 2))


class BatchLastMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` on batch-last tensors, without dilation."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.max_pool(input, sizes(self.kernel_size, 2), sizes(self.stride, 2), sizes(self.padding, 2))


class BatchLastAdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """`nn.AdaptiveAvgPool1d` on batch-last series."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_average_pool(input, sizes(self.output_size, 1))


class BatchLastAvgPool1d(nn.AvgPool1d):
    """`nn.AvgPool1d` on batch-last series, without padding."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.average_pool(input, sizes(self.kernel_size, 1), sizes(self.stride, 1))


class BatchLastMaxPool1d(nn.MaxPool1d):
    """`nn.MaxPool1d` on batch-last series, without dilation."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.max_pool(input, sizes(self.kernel_size, 1), sizes(self.stride, 1), sizes(self.padding, 1))


def batch_last(module: nn.Module) -> nn.Module | None:
    """The batch-last counterpart of a norm or a pooling layer; None for all that has none."""
    if type(module) is nn.BatchNorm2d:
        return BatchLastNorm2d.of(module)
    if type(module) is nn.BatchNorm1d:
        return BatchLastNorm1d.of(module)
    if is_norm_act(module):
        made = _unfilled(BatchLastNormAct, type(module))
        vars(made).update(vars(module))
        return cast(nn.Module, made)
    if type(module) is nn.AdaptiveAvgPool2d:
        return BatchLastAdaptiveAvgPool2d(module.output_size)
    if type(module) is nn.AdaptiveAvgPool1d:
        return BatchLastAdaptiveAvgPool1d(module.output_size)
    if type(module) is nn.AvgPool2d and not any(sizes(module.padding, 2)) and not module.ceil_mode:
        return None if module.divisor_override else BatchLastAvgPool2d(module.kernel_size, module.stride)
    if type(module) is nn.AvgPool1d and not any(sizes(module.padding, 1)) and not module.ceil_mode:
        return BatchLastAvgPool1d(module.kernel_size, module.stride)
    if type(module) is nn.MaxPool2d and _is_plain(module):
        return BatchLastMaxPool2d(module.kernel_size, module.stride, module.padding)
    if type(module) is nn.MaxPool1d and _is_plain(module):
        return BatchLastMaxPool1d(module.kernel_size, module.stride, module.padding)
    return None


def _is_plain(pool: nn.MaxPool1d | nn.MaxPool2d) -> bool:
    dilated = any(d != 1 for d in sizes(pool.dilation, 1))
    return not (dilated or pool.ceil_mode or pool.return_indices)


def sizes(given: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One size for each of the axes, given as one number for all or as so many."""
    return (given,) * axes if isinstance(given, int) else tuple(given)
