"""Differentiable operations on batch-last tensors: sparse convolution and linear, fused BatchNorm, pooling.

Inputs of other strides are repacked once, results are batch-last. Everything runs on the CPU in float32, with
`torch.get_num_threads()` threads; the bits of a result do not depend on their number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparcl.errors import ConfigError
from sparcl.kernels import _native, why_unavailable
from sparcl.kernels.layout import check, empty_batch_last, memory, repacked, to_batch_last

# N batch, C channels, O out, I in, K nonzeros

Pair = tuple[int, int]


def conv_plan(
    index: Tensor,
    weight_shape: tuple[int, int, int, int],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    block: int = 1,
) -> Any:
    """What the kernels need to know of a mask: build it when the mask changes, not for every step.

    index: int32 [K], ascending row-major positions of the nonzeros in the dense weight.
    weight_shape: [O, I/groups, kh, kw] of the dense weight.
    block: that many consecutive output channels share their positions; 1 for unstructured.

    Raises:
        ConfigError: the compiled part is missing, or the sizes, positions or blocks do not fit each other.
    """
    if why_unavailable():
        raise ConfigError(why_unavailable())
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

    x: [N, I, H, W]; values: [K], in the order of the plan's index; bias: [O]. Returns [N, O, Ho, Wo], batch-last.

    Raises:
        ConfigError: another dtype than float32, another device than the CPU, or sizes that do not fit.
    """
    check(x, "the input")
    for name, tensor in (("the values", values), ("the bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ConfigError(f"{name} of a native layer must be torch.float32, not {tensor.dtype}")
    recipe: Recipe | None = getattr(x, "_sparcl_recipe", None)
    if recipe is not None and recipe.version != x._version:  # changed in place since
        recipe = None
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

    version: int
    relu: bool
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor


class _SparseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: Any, recipe: Recipe | None) -> Tensor:
        x = repacked(x)
        source = memory(x)
        try:
            size = plan.output_size(source.size(1), source.size(2)) if x.dim() == 4 else ()
            y = empty_batch_last((x.size(0), plan.output_channels, *size))
            offsets = None if bias is None else bias.detach()
            plan.forward(values.detach(), offsets, source, memory(y), torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not ctx.needs_input_grad[1]:  # only the weight gradient asks for x
            ctx.save_for_backward(values)
        elif recipe is None:
            ctx.save_for_backward(values, x)
        else:
            ctx.save_for_backward(values, *recipe[2:])
            ctx.relu = recipe.relu
        ctx.plan, ctx.shape = plan, tuple(x.shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, *kept = ctx.saved_tensors
        gy, threads = memory(repacked(gradient)), torch.get_num_threads()
        gx = gvalues = gbias = None
        if ctx.needs_input_grad[1]:
            x = kept[0] if len(kept) == 1 else _made_again(*kept, relu=ctx.relu)
            gvalues = torch.empty_like(values)
            ctx.plan.weight_gradient(memory(x), gy, gvalues, threads)
        if ctx.needs_input_grad[0]:
            gx = empty_batch_last(ctx.shape)
            ctx.plan.input_gradient(values.detach(), gy, memory(gx), threads)
        if ctx.needs_input_grad[2]:
            gbias = torch.empty(gy.size(0))
            _native.bias_gradient(gy, gbias, threads)
        return gx, gvalues, gbias, None, None


def _made_again(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, *, relu: bool
) -> Tensor:
    """A BatchNorm's result, as a `Recipe` says."""
    y = empty_batch_last(tuple(x.shape))
    scale, shift = (None if t is None else t.detach() for t in (weight, bias))
    _native.batch_norm_apply(memory(x), scale, shift, mean, rstd, memory(y), relu, torch.get_num_threads())
    return y


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
) -> Tensor:
    """relu(batch_norm(x) + residual), reading x once from memory for the statistics (Ioffe and Szegedy 2015).

    x, residual: [N, C, H, W] or [N, C]; weight, bias, running_mean, running_var: [C] or None. With `training` the
    batch's statistics are used and the running ones moved; without, the running ones are used (the batch's where
    there are none). Keeps x for the backward pass, and the result only where both residual and relu ask for it.

    Raises:
        ConfigError: dtype, device or shape do not fit, or training with one value in each channel.
    """
    check(x, "the input")
    training = training or running_mean is None
    if training and x.numel() == x.size(1):
        raise ConfigError(
            f"batch_norm: training needs more than one value in each channel, the input is {list(x.shape)}"
        )
    if residual is not None:
        check(residual, "the residual")
        if residual.shape != x.shape:
            raise ConfigError(f"batch_norm: residual must have shape {list(x.shape)}, not {list(residual.shape)}")
    x = to_batch_last(x)
    mean, rstd = torch.empty(x.size(1)), torch.empty(x.size(1))
    y: Tensor = _BatchNorm.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, residual, running_mean, running_var, mean, rstd, training, momentum, eps, relu
    )
    if residual is None and torch.is_grad_enabled():
        y._sparcl_recipe = Recipe(y._version, relu, x.detach(), weight, bias, mean, rstd)  # type: ignore[attr-defined]
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Tensor:
        y = empty_batch_last(tuple(x.shape))
        try:
            _native.batch_norm(
                memory(x),
                None if residual is None else memory(repacked(residual)),
                None if weight is None else weight.detach(),
                None if bias is None else bias.detach(),
                running_mean,
                running_var,
                mean,
                rstd,
                memory(y),
                training,
                momentum,
                eps,
                relu,
                torch.get_num_threads(),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        ctx.save_for_backward(x, weight, bias, mean, rstd, y if relu and residual is not None else None)
        ctx.training, ctx.relu = training, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        gradient = repacked(gradient)
        gx = empty_batch_last(tuple(x.shape)) if ctx.needs_input_grad[0] else None
        gweight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        gbias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        gresidual = gradient if ctx.needs_input_grad[3] else None
        if gresidual is not None and ctx.relu:
            gresidual = empty_batch_last(tuple(x.shape))
        _native.batch_norm_backward(
            memory(x),
            None if y is None else memory(y),
            memory(gradient),
            None if weight is None else weight.detach(),
            None if bias is None else bias.detach(),
            mean,
            rstd,
            None if gx is None else memory(gx),
            memory(gresidual) if gresidual is not None and ctx.relu else None,
            gweight,
            gbias,
            ctx.training,
            ctx.relu,
            torch.get_num_threads(),
        )
        return gx, gweight, gbias, gresidual, *(None,) * 8


def average_pool(x: Tensor, size: Pair, stride: Pair | None = None) -> Tensor:
    """Mean over windows of `size` (rows, columns), unpadded. x: [N, C, H, W]; returns [N, C, Ho, Wo], batch-last."""
    return _pool(x, size, stride, None)


def adaptive_average_pool(x: Tensor, output_size: Pair) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool2d. Sizes that do not divide the input's go through PyTorch."""
    check(x, "the input")
    rows, columns = output_size
    if x.dim() != 4 or rows < 1 or columns < 1 or x.size(2) % rows or x.size(3) % columns or x.numel() == 0:
        return to_batch_last(F.adaptive_avg_pool2d(x, output_size))
    return average_pool(x, (x.size(2) // rows, x.size(3) // columns))


def max_pool(x: Tensor, size: Pair, stride: Pair | None = None, padding: Pair = (0, 0)) -> Tensor:
    """Maximum over windows of `size` (rows, columns). x: [N, C, H, W]; returns [N, C, Ho, Wo], batch-last."""
    return _pool(x, size, stride, padding)


def _pool(x: Tensor, size: Pair, stride: Pair | None, padding: Pair | None) -> Tensor:
    check(x, "the input")
    if x.dim() != 4:
        raise ConfigError(f"pooling needs an input of 4 axes [N, C, H, W], not {x.dim()}")
    y: Tensor = _Pool.apply(x, size, stride or size, padding)  # type: ignore[no-untyped-call]
    return y


class _Pool(torch.autograd.Function):
    """Average pooling where padding is None, else maximum pooling."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Pair, stride: Pair, padding: Pair | None) -> Tensor:
        x = repacked(x)
        rows, columns = (
            (x.size(2 + a) + 2 * (padding[a] if padding else 0) - size[a]) // max(1, stride[a]) + 1 for a in (0, 1)
        )
        y = empty_batch_last((x.size(0), x.size(1), max(0, rows), max(0, columns)))
        threads = torch.get_num_threads()
        try:
            if padding is None:
                _native.average_pool(memory(x), memory(y), size, stride, threads)
            else:
                _native.max_pool(memory(x), memory(y), size, stride, padding, threads)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        ctx.save_for_backward(None if padding is None else x)
        ctx.shape, ctx.window = tuple(x.shape), (size, stride, padding)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        size, stride, padding = ctx.window
        gx, gy, threads = empty_batch_last(ctx.shape), memory(repacked(gradient)), torch.get_num_threads()
        if padding is None:
            _native.average_pool_backward(gy, memory(gx), size, stride, threads)
        else:
            _native.max_pool_backward(memory(ctx.saved_tensors[0]), gy, memory(gx), size, stride, padding, threads)
        return gx, None, None, None
