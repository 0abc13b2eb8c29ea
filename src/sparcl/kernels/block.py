"""Residual blocks as one differentiable operation: what autograd and more passes over memory cost is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.kernels import _native
from sparcl.kernels.layout import check, repacked
from sparcl.kernels.ops import first_order, recipe_of

# N batch, C channels, K nonzeros


class ConvNorm(NamedTuple):
    """A convolution without bias and the BatchNorm behind it; see `ops.sparse_conv2d` and `ops.batch_norm`."""

    plan: Any
    values: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    training: bool
    momentum: float
    eps: float


class Block(NamedTuple):
    """relu(second(relu(first(x))) + shortcut(x)), the shortcut being x itself where there is none (He et al., 2016)."""

    first: ConvNorm
    second: ConvNorm
    shortcut: ConvNorm | None = None


def residual_chain(
    x: Tensor, blocks: Sequence[Block], stem: ConvNorm | None = None, pool: bool = False, halves: bool = False
) -> Tensor:
    """The blocks one after the other; before them relu(stem(x)), behind them the mean of each channel, where asked for.

    Numbers are those of `ops.sparse_conv2d`, `ops.batch_norm` and `ops.average_pool` one by one, to the bit. Keeps for
    the backward pass the input (or what it was made of), the results of the convolutions and of the blocks, each until
    it has been read.

    With `halves`, where gradients are enabled and N is a multiple of 16, the results of convolutions and blocks and all
    gradients of them are kept in bfloat16, each rounded to the nearest as it is written: they are then what float32
    with those roundings gives. It needs stem and pool, whose other sides stay float32.

    x: [N, C, H, W]; returns the same axes, with `pool` [N, C], batch-last.

    Raises:
        ConfigError: dtype, device or shape do not fit, or training with one value in each channel.
    """
    check(x, "the input")
    stages = [stage for block in ((stem,), *blocks) for stage in block if stage is not None]
    parameters = [tensor for stage in stages for tensor in stage[1:4]]
    if not all(tensor is None or tensor.is_contiguous() for tensor in parameters):  # `model.to(memory_format=...)`
        blocks = [Block(_contiguous(a), _contiguous(b), c and _contiguous(c)) for a, b, c in blocks]
        return residual_chain(x, blocks, stem and _contiguous(stem), pool, halves)
    keep = torch.is_grad_enabled()
    chain = (stem, blocks, pool, halves and keep)
    y: Tensor = _Chain.apply(chain, keep, recipe_of(x), x, *parameters)  # type: ignore[no-untyped-call]
    return y


def _contiguous(stage: ConvNorm) -> ConvNorm:
    """The stage with parameters that the kernels can read as they lie in memory."""
    fields: tuple[Any, ...] = stage  # which the compiled part gives as a plain one
    plan, values, weight, bias, *rest = fields
    weight, bias = (tensor if tensor is None else tensor.contiguous() for tensor in (weight, bias))
    return ConvNorm(plan, values.contiguous(), weight, bias, *rest)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Any, keep: bool, recipe: Any, x: Tensor, *parameters: Tensor | None) -> Tensor:
        x = repacked(x)
        _, _, _, *wanted = ctx.needs_input_grad
        try:
            y, tape = _native.residual_chain(x, *chain, wanted if keep else [], torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if tape is None:
            return y  # type: ignore[no-any-return]
        inputs: list[Tensor | None] = [None, None, None, None]
        ctx.tape, ctx.relu = tape, False
        if tape.reads_input:  # by the gradients of the values of the first convolutions
            if recipe is None:
                inputs[0] = x
            else:
                _, ctx.relu, *inputs = recipe
        ctx.save_for_backward(*inputs, *parameters)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats, *parameters = ctx.saved_tensors
        # What the tape holds is not autograd's, which drops its own after the last time.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        made_of = (x, weight, bias, stats, ctx.relu)
        gradients = ctx.tape.backward(repacked(gradient), *made_of, parameters, not again, torch.get_num_threads())
        return (None, None, None, *gradients)
