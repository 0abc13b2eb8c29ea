"""The residual blocks of ResNet-18 (He et al., 2016): one native operation where every layer in them is native.

The result is the same either way, to the bit. What is gained is time outside the kernels, and passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparcl.kernels.block import Block, ConvNorm, residual_chain
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d
from sparcl.nn.norm import BatchLastAdaptiveAvgPool2d, BatchLastNorm2d, norm_relu

CONVOLUTIONS = (CompactConv2d, BatchLastConv2d)
NORMS = (BatchLastNorm2d,)
SEQUENCES = (nn.Sequential,)
POOLS = (BatchLastAdaptiveAvgPool2d,)
LAYERS = ("conv1", "bn1", "conv2", "bn2", "shortcut")


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
    block = _block(conv1, bn1, conv2, bn2, shortcut)
    if block is not None and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        return residual_chain(x, (block,))
    return norm_relu(bn2, conv2(norm_relu(bn1, conv1(x))), shortcut(x))


def residual_network(
    x: Tensor, conv: nn.Module, norm: nn.Module, stages: Sequence[nn.Module], pool: nn.Module
) -> Tensor:
    """pool(stages(relu(norm(conv(x))))), layer by layer and block by block wherever that could make a difference.

    Args:
        x: [N, C, H, W].
        conv, norm: the stem, native or not.
        stages: one after the other; an `nn.Sequential` of `BasicBlock`s, or any other module.
        pool: global average pooling, or any other module.
    """
    stem = _stage(conv, norm)
    mean = _is_plain(pool, POOLS) and pool.output_size in (1, (1, 1))
    if stem is not None and mean and x.numel() and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        blocks = _blocks(stages)
        if blocks:
            return residual_chain(x, blocks, stem, pool=True)
    y = norm_relu(norm, conv(x))
    for stage in stages:
        y = stage(y)
    pooled: Tensor = pool(y)
    return pooled


def _blocks(stages: Sequence[nn.Module]) -> list[Block] | None:
    """All of them for the fused operation; None as in `_stage`."""
    blocks = []
    for stage in stages:
        if not _is_plain(stage, SEQUENCES):
            return None
        for module in cast(Iterable[nn.Module], stage._modules.values()):
            if not _is_plain(module, BLOCKS):
                return None
            block = _block(*(cast(nn.Module, module._modules[name]) for name in LAYERS))
            if block is None:
                return None
            blocks.append(block)
    return blocks


def _block(conv1: nn.Module, bn1: nn.Module, conv2: nn.Module, bn2: nn.Module, shortcut: nn.Module) -> Block | None:
    """The layers for the fused operation; None as in `_stage`."""
    first, second = _stage(conv1, bn1), _stage(conv2, bn2)
    if first is None or second is None or not _is_plain(shortcut, SEQUENCES):
        return None
    beside = cast(tuple[nn.Module, ...], tuple(shortcut._modules.values()))
    if not beside:
        return Block(first, second)
    third = _stage(*beside) if len(beside) == 2 else None
    if third is None or cast(BatchLastNorm2d, beside[1]).relu:
        return None
    return Block(first, second, third)


def _stage(conv: nn.Module, norm: nn.Module) -> ConvNorm | None:
    """Both layers for the fused operation; None where one of them is not simply what the operation computes."""
    if not (_is_plain(conv, CONVOLUTIONS) and _is_plain(norm, NORMS)):
        return None
    assert type(norm) is BatchLastNorm2d
    # From the modules' dictionaries: asking a module for a parameter costs 0.5 µs, and a step asks for a hundred.
    parameters, buffers = norm._parameters, norm._buffers
    mean, var, momentum = buffers.get("running_mean"), buffers.get("running_var"), norm.momentum
    values = conv._parameters.get("values" if type(conv) is CompactConv2d else "weight")
    if mean is None or var is None or momentum is None or values is None or conv.bias is not None:
        return None
    if "weight" not in parameters or "bias" not in parameters:
        return None  # something else has been put there
    scale, shift, tracked = parameters["weight"], parameters["bias"], buffers.get("num_batches_tracked")
    return ConvNorm(conv.plan, values, scale, shift, mean, var, tracked, norm.training, momentum, norm.eps)


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether calling the module runs the `forward` of one of these classes, and nothing else."""
    own = module.__dict__
    return type(module) in kinds and not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_compiled_call_impl" in own
    )


BLOCKS = (BasicBlock,)
