"""Differentiable operations on batch-last tensors: sparse convolution and linear, fused BatchNorm, pooling.

Inputs of other strides are repacked once, results are batch-last. Everything runs on the CPU in float32, with
`torch.get_num_threads()` threads; the bits of a result do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparcl.errors import ConfigError
from sparcl.kernels import _native, why_unavailable
from sparcl.kernels.layout import check, repacked, to_batch_last

# N batch, C channels, O out, I in, K nonzeros, L length

Pair = tuple[int, int]
Sizes = tuple[int, ...]
"""(rows, columns) of an image, or (length,) of a series, which is computed as an image of one row."""


def conv_plan(
    index: Tensor,
    weight_shape: tuple[int, ...],
    stride: Sizes = (1, 1),
    padding: Sizes = (0, 0),
    dilation: Sizes = (1, 1),
    groups: int = 1,
    block: int = 1,
) -> Any:
    """What the kernels need to know of a mask: build it when the mask changes, not for every step.

    index: int32 [K], ascending row-major positions of the nonzeros in the dense weight.
    weight_shape: [O, I/groups, kh, kw] of the dense weight; [O, I/groups, k] for `sparse_conv1d`.
    stride, padding, dilation: (rows, columns); (length,) for `sparse_conv1d`.
    block: that many consecutive output channels share their positions; 1 for unstructured.

    Raises:
        ConfigError: the compiled part is missing, or the sizes, positions or blocks do not fit each other.
    """
    if why_unavailable():
        raise ConfigError(why_unavailable())
    if len(weight_shape) == 3:
        weight_shape = (*weight_shape[:2], 1, weight_shape[2])
        stride, padding, dilation = two(stride[-1:], 1), two(padding[-1:], 0), two(dilation[-1:], 1)
    try:
        return _native.ConvPlan(index.contiguous(), weight_shape, stride, padding, dilation, groups, block)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except TypeError:  # nanobind takes no number that does not fit an int
        sizes = f"{tuple(weight_shape)}, stride {stride}, padding {padding}, dilation {dilation}, groups {groups}"
        raise ConfigError(f"a native layer's sizes must be whole numbers below 2^31: {sizes}") from None


def linear_plan(index: Tensor, weight_shape: Pair, block: int = 1) -> Any:
    """`conv_plan` of a linear layer with a weight of shape [O, I]: a convolution over one position."""
    return conv_plan(index, (*weight_shape, 1, 1), block=block)


def sparse_conv2d(x: Tensor, values: Tensor, plan: Any, bias: Tensor | None = None) -> Tensor:
    """Convolution with the weights of `plan`, as torch.nn.functional.conv2d with the dense weight.

    x: [N, I, H, W]; values: [K], or any shape of K elements, in the order of the plan's index; bias: [O]. Returns
    [N, O, Ho, Wo], batch-last.

    Raises:
        ConfigError: another dtype than float32, another device than the CPU, or sizes that do not fit.
    """
    check(x, "the input")
    if x.dim() == 3:
        raise ConfigError("the input of a native layer must have 2 axes [N, F] or 4 axes [N, C, H, W], not 3")
    return _convolution(x, values, plan, bias)


def sparse_conv1d(x: Tensor, values: Tensor, plan: Any, bias: Tensor | None = None) -> Tensor:
    """As `sparse_conv2d`, and torch.nn.functional.conv1d: x [N, I, L]; returns [N, O, Lo], batch-last."""
    check(x, "the input")
    if x.dim() != 3:
        raise ConfigError(f"the input of a native convolution of series must have 3 axes [N, C, L], not {x.dim()}")
    return _convolution(x, values, plan, bias)


def _convolution(x: Tensor, values: Tensor, plan: Any, bias: Tensor | None) -> Tensor:
    recipe = recipe_of(x)
    values, bias = values.contiguous(), bias if bias is None else bias.contiguous()
    y: Tensor = _SparseConv2d.apply(x, values, bias, plan, recipe)  # type: ignore[no-untyped-call]
    return y


def sparse_linear(x: Tensor, values: Tensor, plan: Any, bias: Tensor | None = None) -> Tensor:
    """Linear layer with the weights of `plan` (see `linear_plan`). x: [N, I]; returns [N, O], batch-last."""
    if x.dim() != 2:
        raise ConfigError(f"the input of a native linear layer must have 2 axes [N, F], not {x.dim()}")
    return sparse_conv2d(x, values, plan, bias)


class Recipe(NamedTuple):
    """How to make a BatchNorm's result again from its input: a convolution keeps this instead of its own input.

    The BatchNorm keeps that input in any case, so each of the two has one tensor to keep, the same.
    """

    versions: list[int | None]
    """Of the result, x, weight and bias when it was made; of an inference tensor, which counts none, None."""
    relu: bool
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    stats: Tensor


def recipe_of(x: Tensor) -> Recipe | None:
    """How to make `x` again, where a BatchNorm made it and neither it nor what it is made of changed in place since.

    PyTorch would not tell of the latter: what a convolution keeps counts as it is when the convolution is computed.
    """
    recipe: Recipe | None = getattr(x, "_sparcl_recipe", None)
    if recipe is None or recipe.versions != _versions(x, recipe.x, recipe.weight, recipe.bias):
        return None
    return recipe


def _versions(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`once_differentiable`, but free of its cost (3 µs a call) where nobody asks for a second derivative."""
    guarded = once_differentiable(backward)

    def either(ctx: Any, gradient: Tensor) -> Any:
        return guarded(ctx, gradient) if torch.is_grad_enabled() else backward(ctx, gradient)

    return either


class _SparseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: Any, recipe: Recipe | None) -> Tensor:
        x = repacked(x)
        try:
            y: Tensor = plan.forward(x, values, bias, torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        ctx.plan, ctx.shape, ctx.relu = plan, x.shape, False
        if not ctx.needs_input_grad[1]:  # only the weight gradient asks for x
            ctx.save_for_backward(values, None, None, None, None)
        elif recipe is None:
            ctx.save_for_backward(values, x, None, None, None)
        else:
            _, ctx.relu, *made_of = recipe
            ctx.save_for_backward(values, *made_of)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # x, or what a BatchNorm made it of: its input, weight, bias and statistics
        values, x, *norm = ctx.saved_tensors
        want_x, want_values, want_bias, *_ = ctx.needs_input_grad
        wanted = (want_x, want_values, want_bias, torch.get_num_threads())
        gradients = ctx.plan.backward(repacked(gradient), ctx.shape, values, x, *norm, ctx.relu, *wanted)
        return (*gradients, None, None)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(x) + residual), reading x once from memory for the statistics (Ioffe and Szegedy 2015).

    x, residual: [N, C, H, W], [N, C, L] or [N, C]; weight, bias, running_mean, running_var: [C] or None. With
    `training` the batch's statistics are used and the running ones moved; without, the running ones are used (the
    batch's where there are none). num_batches_tracked, one int64, is counted up in training. Keeps x for the backward
    pass, and the result only where both residual and relu ask for it.

    Raises:
        ConfigError: dtype, device or shape do not fit, or training with one value in each channel.
    """
    x = to_batch_last(x)
    training = training or running_mean is None
    if training and x.numel() == x.size(1):
        raise ConfigError(
            f"batch_norm: training needs more than one value in each channel, the input is {list(x.shape)}"
        )
    if residual is not None:
        check(residual, "the residual")
        if residual.shape != x.shape:
            raise ConfigError(f"batch_norm: residual must have shape {list(x.shape)}, not {list(residual.shape)}")
    stats = torch.empty(2, x.size(1), dtype=torch.float32)  # mean and 1 / deviation
    settings = (running_mean, running_var, num_batches_tracked, stats, training, momentum, eps, relu)
    y: Tensor = _BatchNorm.apply(x, weight, bias, residual, settings)  # type: ignore[no-untyped-call]
    if residual is None and torch.is_grad_enabled():
        versions = _versions(y, x, weight, bias)
        y._sparcl_recipe = Recipe(versions, relu, x.detach(), weight, bias, stats)  # type: ignore[attr-defined]
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        """settings: running_mean, running_var, num_batches_tracked, stats, training, momentum, eps, relu."""
        _, _, _, stats, training, _, _, relu = settings
        other = None if residual is None else repacked(residual)
        try:
            y: Tensor = _native.batch_norm(x, other, weight, bias, *settings, torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, stats)
        ctx.training, ctx.relu = training, relu
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = repacked(gradient)
        *wanted, want_residual, _ = ctx.needs_input_grad
        own_residual = want_residual and ctx.relu  # without ReLU it is the gradient that came
        settings = (*wanted, own_residual, ctx.training, ctx.relu, torch.get_num_threads())
        gx, gweight, gbias, gresidual = _native.batch_norm_backward(gradient, *ctx.saved_tensors, *settings)
        return gx, gweight, gbias, gradient if want_residual and not ctx.relu else gresidual, None


def average_pool(x: Tensor, size: Sizes, stride: Sizes | None = None) -> Tensor:
    """Mean over windows of `size`, unpadded.

    x: [N, C, H, W] with (rows, columns), or [N, C, L] with (length,); returns [N, C, Ho, Wo] or [N, C, Lo], batch-last.
    """
    return _pool(x, size, stride, None)


def adaptive_average_pool(x: Tensor, output_size: Sizes) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool2d (1d for series). What does not divide goes through PyTorch."""
    check(x, "the input")
    sizes = tuple(x.shape[2:])
    divides = len(sizes) == len(output_size) and all(
        own >= 1 and size % own == 0 for own, size in zip(output_size, sizes, strict=True)
    )
    if not divides or x.numel() == 0:
        pool: Any = F.adaptive_avg_pool1d if len(output_size) == 1 else F.adaptive_avg_pool2d
        return to_batch_last(pool(x, output_size))
    return average_pool(x, tuple(size // own for own, size in zip(output_size, sizes, strict=True)))


def max_pool(x: Tensor, size: Sizes, stride: Sizes | None = None, padding: Sizes | None = None) -> Tensor:
    """Maximum over windows of `size`, with minus infinity as the padding; axes as those of `average_pool`."""
    return _pool(x, size, stride, padding or (0,) * len(size))


def _pool(x: Tensor, size: Sizes, stride: Sizes | None, padding: Sizes | None) -> Tensor:
    check(x, "the input")
    if x.dim() != len(size) + 2:
        wanted = "4 axes [N, C, H, W]" if len(size) == 2 else "3 axes [N, C, L]"
        raise ConfigError(f"pooling needs an input of {wanted}, not {x.dim()}")
    window = two(size, 1), two(stride or size, 1), None if padding is None else two(padding, 0)
    y: Tensor = _Pool.apply(x, *window)  # type: ignore[no-untyped-call]
    return y


def two(sizes: Sizes, of_row: int) -> Pair:
    """(rows, columns) of sizes that may be those of a series, whose one row has `of_row`."""
    return (of_row, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


class _Pool(torch.autograd.Function):
    """Average pooling where padding is None, else maximum pooling."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Pair, stride: Pair, padding: Pair | None) -> Tensor:
        x, threads = repacked(x), torch.get_num_threads()
        try:
            if padding is None:
                y: Tensor = _native.average_pool(x, size, stride, threads)
            else:
                y = _native.max_pool(x, size, stride, padding, threads)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        except TypeError:  # nanobind takes no number that does not fit an int
            sizes = f"{tuple(size)}, stride {tuple(stride)}, padding {tuple(padding or (0, 0))}"
            raise ConfigError(f"pooling: sizes must be whole numbers below 2^31: window {sizes}") from None
        ctx.save_for_backward(None if padding is None else x)
        ctx.shape, ctx.window = x.shape, (size, stride, padding)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        size, stride, padding = ctx.window
        gy, threads = repacked(gradient), torch.get_num_threads()
        if padding is None:
            gx: Tensor = _native.average_pool_backward(gy, ctx.shape, size, stride, threads)
        else:
            gx = _native.max_pool_backward(ctx.saved_tensors[0], gy, size, stride, padding, threads)
        return gx, None, None, None
