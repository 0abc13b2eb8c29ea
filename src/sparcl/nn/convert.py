"""From a dense model to one that the native backend computes, and back to a dense state dict.

    model = sparcl.nn.convert.to_native(model)            # in place; create the optimizer afterwards
    state = sparcl.nn.convert.dense_state_dict(model)     # loads into the model as it was

Prunable layers become compact; the other convolutions, BatchNorm and pooling keep the batch-last layout between them,
so that it changes at the model's two ends only. A ReLU that follows a BatchNorm in an `nn.Sequential`, and every
`norm_relu`, is computed with it. Whatever else the model does works unchanged: a batch-last tensor has the usual shape,
and a layer stays the object it was, for those that hold it in a list or a closure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.nn import memory
from sparcl.nn.choices import CHOICES
from sparcl.nn.compact import CompactLayer, batch_last_layer, compact_layer, has_kernel
from sparcl.nn.layers import Prunable, is_watched, prunable_names
from sparcl.nn.norm import batch_last, merge_relu


def to_native(model: nn.Module, prunable: Prunable = None, choice: Mapping[str, str] | None = None) -> nn.Module:
    """Convert a model in place, and return it.

    Parameters of the layers that stay dense remain the same objects; a compact layer has a new one, `values`. So create
    the optimizer after conversion.

    Args:
        model: float32, on the CPU.
        prunable: layers that become compact (see `prunable_names`).
        choice: "native" or "dense" by layer name, for prunable layers; default: native.

    Raises:
        ConfigError: the compiled part is missing, the model is not float32 on the CPU, or a choice that is not allowed.
    """
    if not kernels.available():
        raise ConfigError(f"backend native is not available: {kernels.why_unavailable()}; use backend reference")
    names = prunable_names(model, prunable)
    check_choice(choice or {}, names)
    compact = {name for name in names if (choice or {}).get(name, "native") == "native"}
    _check_parameters(model)
    memory.make_contiguous(model)  # the kernels go by it
    shared = _shared_parameters(model)
    for name, module in list(model.named_modules()):
        if not name or name.startswith("parametrizations") or is_watched(module):
            continue
        new = _converted(module, compact=name in compact, tied=any(id(p) in shared for p in module.parameters()))
        if new is not None:
            _become(module, new.train(module.training))
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            merge_relu(module)
    model.register_forward_hook(ordinary_output)
    return model


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as it would be had it never been converted: dense weights, the same names and order."""
    state: dict[str, Tensor] = {}
    compact = _compact(model)
    for key, tensor in model.state_dict().items():
        layer, _, entry = key.rpartition(".")
        if layer not in compact:
            state[key] = tensor
        elif entry == "values":
            state[f"{layer}.weight"] = compact[layer].dense_weight()
        elif entry != "weight_index":
            state[key] = tensor
    return state


def dense_parameters(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter, in their order, as they would be had the model never been converted."""
    compact = {module.values: (f"{name}.weight", module.shape) for name, module in _compact(model).items()}
    return [compact.get(p, (name, tuple(p.shape))) for name, p in model.named_parameters()]


def dense_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers by name, less those that say where a compact layer's weights are."""
    places = {f"{name}.weight_index" for name in _compact(model)}
    return {name: buffer for name, buffer in model.named_buffers() if name not in places}


def _compact(model: nn.Module) -> dict[str, CompactLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, CompactLayer)}


def backends(model: nn.Module, names: list[str]) -> dict[str, list[str]]:
    """Which of the layers `names` run on which backend: {"native": [...], "reference": [...]}."""
    native = [name for name in names if isinstance(model.get_submodule(name), CompactLayer)]
    return {"native": native, "reference": [name for name in names if name not in native]}


def check_choice(choice: Mapping[str, str], names: list[str]) -> None:
    """Refuse a recorded choice that is not for these layers."""
    for name, chosen in choice.items():
        if chosen not in CHOICES:
            raise ConfigError(f"layer choice {chosen!r} of {name} is not allowed; use one of: {', '.join(CHOICES)}")
        if name not in names:
            raise ConfigError(f"layer choice names {name!r}, which is not prunable; prunable: {', '.join(names)}")


def _converted(module: nn.Module, *, compact: bool, tied: bool) -> nn.Module | None:
    """The module's batch-last counterpart; None where it stays as it is."""
    if tied:
        return None
    if has_kernel(module):
        return compact_layer(module) if compact else batch_last_layer(module)
    return batch_last(module)


def _become(module: nn.Module, new: nn.Module) -> None:
    """Make a layer its counterpart in place: whoever holds it, under another name or in a list, holds that."""
    vars(module).pop("_sparse_layer", None)
    vars(module).update(vars(new))
    module.__class__ = type(new)


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ConfigError(
                f"backend native trains float32 on the CPU; {name} is {parameter.dtype} on {parameter.device}:"
                " use backend reference"
            )


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that two different modules hold: their layers stay as they are."""
    owners: dict[int, int] = {}
    shared = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if owners.setdefault(id(parameter), id(module)) != id(module):
                shared.add(id(parameter))
    return shared


def is_converted(model: nn.Module) -> bool:
    """Whether the only hook on a model is the conversion's own."""
    others = (model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    alone = not any(others) and not hasattr(model, "parametrizations") and "forward" not in vars(model)
    return alone and list(model._forward_hooks.values()) == [ordinary_output]


def ordinary_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The model's result leaves as an ordinary contiguous tensor."""
    del module, inputs
    return output.contiguous() if isinstance(output, Tensor) else output
