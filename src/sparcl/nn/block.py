"""The residual block of ResNet-18 (He et al., 2016): one native operation where every layer in it is native.

The result is the same either way, to the bit. What is gained is time outside the kernels, and passes over memory.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparcl.kernels.block import ConvNorm
from sparcl.kernels.block import residual_block as fused_block
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d
from sparcl.nn.norm import BatchLastNorm2d, norm_relu

CONVOLUTIONS = (CompactConv2d, BatchLastConv2d)
NORMS = (BatchLastNorm2d,)
SEQUENCES = (nn.Sequential,)


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
    first, second = _stage(conv1, bn1), _stage(conv2, bn2)
    watched = _has_any_global_hook()  # type: ignore[no-untyped-call]
    if first is not None and second is not None and not watched and _is_plain(shortcut, SEQUENCES):
        layers = tuple(cast(nn.Sequential, shortcut))
        beside = _stage(*layers) if len(layers) == 2 else None
        if not layers or (beside is not None and not cast(BatchLastNorm2d, layers[1]).relu):
            return fused_block(x, first, second, beside)
    return norm_relu(bn2, conv2(norm_relu(bn1, conv1(x))), shortcut(x))


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
