"""A converted or masked model as plain dense PyTorch, for export and for programs without this package's layers."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from sparcl.errors import ConfigError, one_line, out_of_memory
from sparcl.nn.compact import (
    BatchLastConv1d,
    BatchLastConv2d,
    CompactConv,
    CompactConv1d,
    CompactLayer,
    CompactLinear,
)
from sparcl.nn.convert import ordinary_output
from sparcl.nn.norm import (
    BatchLastAdaptiveAvgPool1d,
    BatchLastAdaptiveAvgPool2d,
    BatchLastAvgPool1d,
    BatchLastAvgPool2d,
    BatchLastMaxPool1d,
    BatchLastMaxPool2d,
    BatchLastNorm1d,
    BatchLastNorm2d,
    BatchLastNormAct,
    MergingSequential,
)

PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    BatchLastConv1d: nn.Conv1d,
    BatchLastConv2d: nn.Conv2d,
    BatchLastNorm1d: nn.BatchNorm1d,
    BatchLastNorm2d: nn.BatchNorm2d,
    BatchLastAdaptiveAvgPool1d: nn.AdaptiveAvgPool1d,
    BatchLastAdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    BatchLastAvgPool1d: nn.AvgPool1d,
    BatchLastAvgPool2d: nn.AvgPool2d,
    BatchLastMaxPool1d: nn.MaxPool1d,
    BatchLastMaxPool2d: nn.MaxPool2d,
}
"""What each batch-last layer was before; it has the same attributes."""


def dense_model(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose layers are PyTorch's own, with zeros where weights are not active.

    Its state dict is `dense_state_dict(model)`. The model itself stays as it is.

    Raises:
        ConfigError: the model cannot be copied.
    """
    try:
        made = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise ConfigError(f"the model cannot be copied: {one_line(error)}") from error
    for module in list(made.modules()):
        vars(module).pop("_sparse_layer", None)
        if isinstance(module, CompactLayer):
            _make_dense(module)
        elif type(module) in PLAIN:
            vars(module).pop("_plan", None)
            module.__class__ = PLAIN[type(module)]
        elif isinstance(module, MergingSequential | BatchLastNormAct):
            module.__class__ = type(module).__bases__[1]
        for key, hook in list(module._forward_hooks.items()):
            if hook is ordinary_output:
                del module._forward_hooks[key]
    return made.eval()


@torch.no_grad()
def _make_dense(module: CompactLayer) -> None:
    """Make a compact layer the dense one that it computes, in place; hooks stay."""
    if isinstance(module, CompactConv):
        kind: Any = nn.Conv1d if isinstance(module, CompactConv1d) else nn.Conv2d
        dense: nn.Module = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            bias=False,
            padding_mode=module.padding_mode,
            device="meta",
        )
    else:
        assert isinstance(module, CompactLinear)
        dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(module.dense_weight(), requires_grad=module.values.requires_grad)
    dense._parameters["bias"] = module._parameters.get("bias")
    hooks: dict[str, Any] = {k: v for k, v in vars(module).items() if k.endswith("_hooks")}
    vars(module).clear()
    vars(module).update(vars(dense) | hooks)
    cast(Any, module).__class__ = type(dense)
