"""A residual block as one differentiable operation: what autograd and two more passes over memory cost is saved."""

from __future__ import annotations

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


def residual_block(x: Tensor, first: ConvNorm, second: ConvNorm, shortcut: ConvNorm | None = None) -> Tensor:
    """relu(second(relu(first(x))) + shortcut(x)), the shortcut being x itself where there is none (He et al., 2016).

    Numbers are those of `ops.sparse_conv2d` and `ops.batch_norm` one by one, to the bit. Keeps for the backward pass
    the input (or what it was made of), the results of the convolutions and of the block.

    x: [N, C, H, W]; returns the same axes, batch-last.

    Raises:
        ConfigError: dtype, device or shape do not fit, or training with one value in each channel.
    """
    check(x, "the input")
    stages = (first, second) if shortcut is None else (first, second, shortcut)
    parameters = [tensor for stage in stages for tensor in stage[1:4]]
    kept_for = torch.is_grad_enabled()
    y: Tensor = _ResidualBlock.apply(x, recipe_of(x), stages, kept_for, *parameters)  # type: ignore[no-untyped-call]
    return y


class _ResidualBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, recipe: Any, stages: tuple[ConvNorm, ...], keep: bool, *parameters: Tensor | None
    ) -> Tensor:
        x = repacked(x)
        want_x, _, _, _, *wanted = ctx.needs_input_grad
        keep = keep and (want_x or any(wanted))
        shortcut = stages[2] if len(stages) == 3 else None
        try:
            made = _native.residual_block(x, *stages[:2], shortcut, keep, torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        y: Tensor = made[0]
        if not keep:
            return y
        needs = [want_x or any(wanted[i : i + 3]) for i in range(0, len(wanted), 3)]
        needs[0] = needs[0] or wanted[3]  # the second convolution's input is made of the first one's result
        needs[1] = True  # whatever is wanted, the gradient comes through the second norm
        results = [tensor if needs[i // 2] else None for i, tensor in enumerate(made[1:])]
        inputs: list[Tensor | None] = [None, None, None, None]
        ctx.relu = False
        if wanted[0] or any(wanted[6:7]):  # only the gradients of the values that read x ask for it
            if recipe is None:
                inputs[0] = x
            else:
                _, ctx.relu, *inputs = recipe
        ctx.save_for_backward(y, *inputs, *results, *parameters)
        ctx.shape, ctx.plans, ctx.training = x.shape, [s.plan for s in stages], [s.training for s in stages]
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, *saved = ctx.saved_tensors
        count = len(ctx.plans)
        inputs, results, parameters = saved[:4], saved[4 : 4 + 2 * count], saved[4 + 2 * count :]
        want_x, _, _, _, *wanted = ctx.needs_input_grad
        stages: list[Any] = [
            (
                ctx.plans[i],
                *parameters[3 * i : 3 * i + 3],
                ctx.training[i],
                *results[2 * i : 2 * i + 2],
                *wanted[3 * i : 3 * i + 3],
            )
            for i in range(count)
        ]
        shortcut = stages[2] if count == 3 else None
        gx, *gradients = _native.residual_block_backward(
            repacked(gradient),
            y,
            ctx.shape,
            *inputs,
            ctx.relu,
            *stages[:2],
            shortcut,
            want_x,
            torch.get_num_threads(),
        )
        return (gx, None, None, None, *gradients)
