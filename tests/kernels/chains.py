"""Chains of residual blocks for tests: made of random numbers, and computed layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from sparcl.kernels import index, ops
from sparcl.kernels.block import Block, ConvNorm


class Memory(NamedTuple):
    """What happens to a tensor that is written and read again, and to one of which only the gradient is written."""

    kept: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


FLOATS = Memory(lambda x: x, lambda x: x)


def one_by_one(
    x: Tensor, first: ConvNorm, second: ConvNorm, shortcut: ConvNorm | None = None, memory: Memory = FLOATS
) -> Tensor:
    """A block, layer by layer."""
    kept, back = memory
    beside = x if shortcut is None else stage_of(x, shortcut, memory=memory)
    return kept(stage_of(back(stage_of(x, first, relu=True, memory=memory)), second, beside, relu=True, memory=memory))


def chain_one_by_one(
    x: Tensor, blocks: list[Block], stem: ConvNorm | None, pool: bool, memory: Memory = FLOATS
) -> Tensor:
    """What `residual_chain` computes, layer by layer."""
    y = x if stem is None else memory.back(stage_of(x, stem, relu=True, memory=memory))
    for block in blocks:
        y = one_by_one(y, *block, memory=memory)
    return ops.adaptive_average_pool(y, (1, 1)).flatten(1) if pool else y


def stage_of(
    x: Tensor, stage: ConvNorm, residual: Tensor | None = None, relu: bool = False, memory: Memory = FLOATS
) -> Tensor:
    """A convolution and its norm."""
    plan, values, weight, bias, mean, var, tracked, training, momentum, eps = stage
    x = memory.kept(ops.sparse_conv2d(x, values, plan))
    return ops.batch_norm(x, weight, bias, mean, var, training, momentum, eps, residual, relu, tracked)


def make_stage(
    inputs: int, outputs: int, size: int, stride: int, *, density: float, block: int, affine: bool, training: bool
) -> ConvNorm:
    """A convolution and its norm, of random numbers; `block` output channels share their positions."""
    shape = (outputs, inputs, size, size)
    mask = (torch.rand(outputs // block, *shape[1:]) < density).repeat_interleave(block, 0)
    plan = ops.conv_plan(index.index_of(mask), shape, (stride, stride), (size // 2, size // 2), block=block)
    values = torch.randn(int(mask.sum())) / max(1.0, density * inputs) ** 0.5 / size
    weight, bias = (torch.randn(outputs), torch.randn(outputs)) if affine else (None, None)
    running = torch.randn(outputs), torch.rand(outputs) + 0.5
    return ConvNorm(plan, values, weight, bias, *running, torch.tensor(3), training, 0.1, 1e-5)


def copied(stage: ConvNorm | None, wanted: list[bool]) -> ConvNorm | None:
    """The same plan and numbers; `wanted`: which of values, weight and bias have a gradient."""
    if stage is None:
        return None
    tensors = [None if t is None else t.clone() for t in stage[1:7]]
    for tensor, wants in zip(tensors, wanted, strict=False):
        if tensor is not None:
            tensor.requires_grad_(wants)
    return ConvNorm(stage.plan, *tensors, *stage[7:])


def make_blocks(inputs: int, steps: list[tuple[int, int]], **options: Any) -> list[Block]:
    """A block for each (channels of the result, stride); with a shortcut of its own where it needs one."""
    blocks = []
    for outputs, stride in steps:
        sides = make_stage(inputs, outputs, 1, stride, **options) if (inputs, 1) != (outputs, stride) else None
        first, second = make_stage(inputs, outputs, 3, stride, **options), make_stage(outputs, outputs, 3, 1, **options)
        blocks.append(Block(first, second, sides))
        inputs = outputs
    return blocks


def draw_chain(data: st.DataObject, training: bool) -> tuple[list[Block], ConvNorm | None]:
    """A few blocks, perhaps behind a stem."""
    options = {"density": 0.4, "block": 1, "affine": data.draw(st.booleans()), "training": training}
    stem = make_stage(3, 4, 3, 1, **options) if data.draw(st.booleans()) else None
    steps = data.draw(st.lists(st.sampled_from([(3, 1), (4, 1), (4, 2)]), min_size=1, max_size=3))
    return make_blocks(3 if stem is None else 4, steps, **options), stem
