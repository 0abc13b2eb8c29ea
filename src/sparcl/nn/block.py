"""The residual blocks of ResNet-18 (He et al., 2016): one native operation where every layer in them is native.

The result is the same either way, to the bit. What is gained is time outside the kernels, and passes over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparcl.kernels import _native
from sparcl.kernels.block import Block, ConvNorm, residual_chain
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d
from sparcl.nn.norm import BatchLastAdaptiveAvgPool2d, BatchLastNorm2d, norm_relu

CONVOLUTIONS = (CompactConv2d, BatchLastConv2d)
NORMS = (BatchLastNorm2d,)
SEQUENCES = (nn.Sequential,)
POOLS = (BatchLastAdaptiveAvgPool2d,)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return residual_block(x, self.conv1, self.bn1, self.conv2, self.bn2, self.shortcut)


def residual_block(
    x: Tensor, conv1: nn.Module, bn1: nn.Module, conv2: nn.Module, bn2: nn.Module, shortcut: nn.Module
) -> Tensor:
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), layer by layer wherever that could make a difference.

    A layer with a hook, of a class of the user's or with settings that the fused operation has not is called as usual,
    and so are its neighbours.

    Args:
        x: [N, C, H, W].
        conv1, bn1, conv2, bn2: layers, native or not.
        shortcut: an empty `nn.Sequential`, one of a convolution and a norm, or any other module.
    """
    if type(conv1) in CONVOLUTIONS and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        block: Block | None = _native.block_of(conv1, bn1, conv2, bn2, shortcut, KINDS)
        if block is not None:
            return residual_chain(x, (block,))
    return norm_relu(bn2, conv2(norm_relu(bn1, conv1(x))), shortcut(x))


def residual_network(
    x: Tensor, conv: nn.Module, norm: nn.Module, stages: Sequence[nn.Module], pool: nn.Module, halves: bool = False
) -> Tensor:
    """pool(stages(relu(norm(conv(x))))) without axes of size 1, layer by layer wherever that could make a difference.

    Args:
        x: [N, C, H, W].
        conv, norm: the stem, native or not.
        stages: one after the other; an `nn.Sequential` of `BasicBlock`s, or any other module.
        pool: global average pooling, or any other module.
        halves: activations are kept in bfloat16 where it is one native operation, see `residual_chain`.

    Returns:
        [N, F].
    """
    if type(conv) in CONVOLUTIONS and type(pool) in POOLS and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        stem: ConvNorm | None = _native.stage_of(conv, norm, KINDS)
        blocks: list[Block] | None = _native.blocks_of(stages, KINDS)
        mean = _native.is_plain(pool, POOLS) and pool.output_size in (1, (1, 1))
        if stem is not None and blocks and mean and x.numel():
            return residual_chain(x, blocks, stem, pool=True, halves=halves)
    y = norm_relu(norm, conv(x))
    for stage in stages:
        y = stage(y)
    pooled: Tensor = pool(y)
    return pooled.flatten(1)


KINDS = (CONVOLUTIONS, NORMS, SEQUENCES, (BasicBlock,))
"""Classes that the fused operation may stand for, where nothing hangs on the module (csrc/python/modules.cpp)."""
