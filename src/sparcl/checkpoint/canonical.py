"""Weights, masks and optimizer state in the one form that every backend shares.

A prunable layer is its active weights, `values` [K], their positions in the row-major dense weight, `index` int32 [K]
ascending, and `chosen`, bool [K] or None: which of them DGM updates. Optimizer state that has a number for each weight
is kept at the active weights, [K], in the same order. Parameters go by their names in the dense model, and so does what
a module's `get_extra_state` gives. What one backend saves another loads, and saves again to the same bytes.

A layer that a backend computes compactly and no sparsifier holds (`dense`, DDR alone) is dense here: its weight, and
the optimizer state of it, have the dense shape.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparcl.checkpoint import checks
from sparcl.checkpoint.tree import State
from sparcl.errors import CheckpointError
from sparcl.nn import memory
from sparcl.nn.compact import CompactLayer
from sparcl.nn.convert import dense_parameters
from sparcl.nn.layers import AVERAGE, ELEMENTWISE_OPTIMIZERS, SparseLayer, fresh_state

Layers = Sequence[SparseLayer]
Fits = Callable[[Tensor, tuple[int, ...]], bool]
"""Whether ascending positions, int64 [K], of a weight of some shape make up whole blocks of the pattern."""

MAX_INDEX = 2**31 - 1


def capture(model: nn.Module, layers: Layers, optimizer: torch.optim.Optimizer) -> State:
    """The state of a model, its masks and its optimizer.

    Raises:
        CheckpointError: a layer with more positions than int32 counts, or optimizer state that is no plain value.
    """
    names = parameter_names(model)
    sparse = {id(layer.parameter): layer for layer in layers}
    whole = {layer.values: layer.shape for layer in unheld(model, layers).values()}
    state = {}
    for parameter, name in names.items():
        if entries := optimizer.state.get(parameter):
            layer, shape = sparse.get(id(parameter)), whole.get(parameter, parameter.shape)
            state[name] = {
                key: at_active(_shaped(value, parameter.shape, shape), layer) for key, value in entries.items()
            }
    return {
        "model": {**dict(_dense(model, layers)), **{name: m.get_extra_state() for name, m in _with_extra(model)}},
        "layers": {layer.name: _layer_state(layer) for layer in layers},
        "optimizer": {
            "kind": type(optimizer).__name__,
            "groups": [
                {**{k: v for k, v in group.items() if k != "params"}, "params": _named(group["params"], names)}
                for group in optimizer.param_groups
            ],
            "state": state,
        },
    }


def _named(parameters: Sequence[nn.Parameter], names: Mapping[nn.Parameter, str]) -> list[str]:
    if any(p not in names for p in parameters):
        raise CheckpointError("the optimizer holds a parameter that the model does not have: it cannot be saved")
    return [names[p] for p in parameters]


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Each parameter's name in the dense model, whatever a compact layer calls its values."""
    dense = zip(model.parameters(), dense_parameters(model), strict=True)
    return {parameter: name for parameter, (name, _) in dense}


def unheld(model: nn.Module, layers: Layers) -> dict[str, CompactLayer]:
    """The compact layers, by name, that no sparsifier holds and all of whose weights are therefore active."""
    held = {id(layer.parameter) for layer in layers}
    compact = ((name, module) for name, module in model.named_modules() if isinstance(module, CompactLayer))
    return {n: m for n, m in compact if id(m.values) not in held and m.values.numel() == math.prod(m.shape)}


def _shaped(value: Any, like: Sequence[int], shape: Sequence[int]) -> Any:
    """Optimizer state that has the shape `like` in another one of as many numbers; all else as it is."""
    return value.reshape(shape) if isinstance(value, Tensor) and tuple(value.shape) == tuple(like) else value


def strides(model: nn.Module) -> dict[str, list[int]]:
    """Strides of the parameters and buffers that do not lie in PyTorch's default order (channels_last), by name."""
    return memory.unusual_strides(_in_memory(model))


def lay_out(model: nn.Module, saved: Any) -> None:
    """Give a model's tensors the order in memory that `strides` told, and the default order to all others.

    Raises:
        CheckpointError: strides of an unknown tensor, or such as leave gaps or overlap.
    """
    tensors = _in_memory(model)
    checks.keys(saved, [name for name in tensors if isinstance(saved, Mapping) and name in saved], "the strides")
    for name, given in saved.items():
        shape = tensors[name].shape
        whole = isinstance(given, list) and all(type(s) is int and 0 <= s <= MAX_INDEX for s in given)
        if not whole or len(given) != len(shape) or not memory.is_dense(given, shape):
            raise CheckpointError(f"strides of {name} in the checkpoint are {given!r:.60}, which do not fit its shape")
    for name, tensor in tensors.items():
        memory.lay_out(tensor, saved.get(name, memory.usual_strides(tensor.shape)))


def _in_memory(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the objects themselves."""
    return {**{name: p for p, name in parameter_names(model).items()}, **dict(model.named_buffers())}


def _dense(model: nn.Module, layers: Layers) -> Iterator[tuple[str, Tensor]]:
    """Parameters of no prunable layer, and the buffers that a state dict has (running statistics), by name.

    They are the model's own memory, in the dense shape.
    """
    sparse, others = {id(layer.parameter) for layer in layers}, unheld(model, layers)
    shapes = {layer.values: layer.shape for layer in others.values()}
    for parameter, name in parameter_names(model).items():
        if id(parameter) not in sparse:
            yield name, parameter.detach().view(shapes.get(parameter, parameter.shape))
    inside = {*(layer.name for layer in layers), *others}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and path not in inside:
                yield (f"{path}.{name}" if path else name), buffer.detach()


def _with_extra(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have a state beside tensors, by the name of that state in PyTorch's state dict."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield (f"{path}._extra_state" if path else "_extra_state"), module


def _layer_state(layer: SparseLayer) -> State:
    if math.prod(layer.shape) > MAX_INDEX:
        raise CheckpointError(f"layer {layer.name} has more than {MAX_INDEX} weights; a checkpoint cannot index them")
    return {
        "shape": list(layer.shape),
        "index": layer.index.to(torch.int32),
        "values": layer.gather(layer.parameter),
        "chosen": layer.chosen,
    }


def at_active(value: Any, layer: SparseLayer | None) -> Any:
    """Optimizer state at the active weights, where it is elementwise."""
    if layer is not None and isinstance(value, Tensor) and value.shape == layer.parameter.shape:
        return layer.gather(value)
    return value


def restore(
    model: nn.Module, layers: Layers, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], fits: Fits
) -> None:
    """Give a model, its masks and its optimizer the state that `capture` took, on whatever backend.

    All of it is checked before any of it is used.

    Raises:
        CheckpointError: it is of another model, optimizer or pattern, or not well formed.
    """
    dense, extra = dict(_dense(model, layers)), dict(_with_extra(model))
    checks.keys(state["model"], {**dense, **extra}, "the model's state")
    for name, tensor in dense.items():
        checks.tensor(state["model"][name], name, tensor.dtype, tuple(tensor.shape))
    checks.keys(state["layers"], [layer.name for layer in layers], "the list of prunable layers")
    for layer in layers:
        _check_layer(layer, state["layers"][layer.name], fits)
    templates = _check_optimizer(model, layers, optimizer, state)

    with torch.no_grad():
        for name, tensor in dense.items():
            tensor.copy_(state["model"][name])
        for layer in layers:
            _set_layer(layer, state["layers"][layer.name])
    for name, module in extra.items():
        module.set_extra_state(copy.deepcopy(state["model"][name]))
    _set_optimizer(model, layers, optimizer, state["optimizer"], templates)


def _check_layer(layer: SparseLayer, state: Any, fits: Fits) -> None:
    what = f"layer {layer.name}"
    checks.keys(state, ("shape", "index", "values", "chosen"), what)
    if state["shape"] != list(layer.shape):
        raise CheckpointError(f"{what} has shape {list(layer.shape)}, in the checkpoint {state['shape']!r:.80}")
    index = checks.tensor(state["index"], f"{what}: index", torch.int32, (None,))
    checks.within(index, f"{what}: index", 0, math.prod(layer.shape) - 1)
    if not len(index) or not bool((index[1:] > index[:-1]).all()):
        raise CheckpointError(f"{what}: index in the checkpoint is not ascending (or empty)")
    if not fits(index.long(), layer.shape):
        raise CheckpointError(f"{what}: index in the checkpoint is not of the sparsifier's pattern")
    checks.tensor(state["values"], f"{what}: values", layer.parameter.dtype, (len(index),))
    if state["chosen"] is not None:
        checks.tensor(state["chosen"], f"{what}: chosen", torch.bool, (len(index),))


def _check_optimizer(
    model: nn.Module, layers: Layers, optimizer: torch.optim.Optimizer, whole: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Check groups and state; returns, by parameter, fresh state of the kind that the optimizer makes."""
    state = checks.keys(whole["optimizer"], ("kind", "groups", "state"), "the optimizer's state")
    if state["kind"] != type(optimizer).__name__:
        raise CheckpointError(f"the optimizer is {type(optimizer).__name__}, in the checkpoint {state['kind']!r:.60}")
    names = parameter_names(model)
    if not isinstance(state["groups"], list) or len(state["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the optimizer has {len(optimizer.param_groups)} parameter group(s), not as many as saved"
        )
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        _check_group(optimizer, group, saved, [names[p] for p in group["params"]])
    known = {name: parameter for parameter, name in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in _dense(model, layers)}
    shapes |= {f"{layer.name}.weight": (len(whole["layers"][layer.name]["index"]),) for layer in layers}
    templates = {}
    for name, entries in checks.keys(state["state"], state["state"], "the optimizer's state").items():
        if name not in known:
            raise CheckpointError(f"the optimizer's state in the checkpoint is of the unknown parameter {name!r:.80}")
        with checks.refusing("the optimizer's state"):
            of = next(i for i, g in enumerate(optimizer.param_groups) if any(p is known[name] for p in g["params"]))
            group, saved = optimizer.param_groups[of], state["groups"][of]
            templates[name] = _template(optimizer, group, saved, known[name], shapes[name], entries)
        for key, like in templates[name].items():
            if isinstance(like, Tensor):
                checks.tensor(entries[key], f"optimizer state {name}: {key}", like.dtype, tuple(like.shape))
            elif not _alike(entries[key], like):
                raise CheckpointError(f"optimizer state {name}: {key} in the checkpoint is {entries[key]!r:.40}")
    return templates


def _check_group(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], saved: Any, names: list[str]) -> None:
    """Options must be such as the optimizer takes; what a scheduler or the user has put beside them is left to them."""
    checks.keys(saved, {**group, **saved} if isinstance(saved, Mapping) else group, "an optimizer's parameter group")
    if saved["params"] != names:
        raise CheckpointError("the optimizer's parameters are not those of the checkpoint, in their order")
    for key, like in group.items():
        is_typed = key in optimizer.defaults or isinstance(like, int | float | str)
        if key != "params" and is_typed and not _alike(saved[key], like):
            raise CheckpointError(
                f"the optimizer's {key} in the checkpoint is {saved[key]!r:.40}, not such as {like!r:.40}"
            )
    if group["params"] and isinstance(optimizer, ELEMENTWISE_OPTIMIZERS):
        with checks.refusing("the optimizer's parameter group"):
            _stepped(optimizer, group, saved, group["params"][0], (1,))


def _alike(value: Any, like: Any) -> bool:
    """Whether a saved option can stand for the present one: a number for a number, and so on."""
    if isinstance(like, Tensor) or isinstance(value, Tensor):
        both = isinstance(value, Tensor) and isinstance(like, Tensor)
        return both and (value.shape, value.dtype) == (like.shape, like.dtype) and bool(value.isfinite().all())
    if isinstance(like, bool) or like is None or isinstance(value, bool) or value is None:
        return all(option is None or isinstance(option, bool) for option in (like, value))  # None: PyTorch may choose
    if isinstance(like, tuple | list):
        return isinstance(value, list | tuple) and len(value) == len(like) and all(map(_alike, value, like))
    if isinstance(like, int | float):
        return isinstance(value, int | float) and math.isfinite(value)
    return type(value) is type(like)


def _template(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    saved: Mapping[str, Any],
    parameter: nn.Parameter,
    shape: tuple[int, ...],
    entries: Any,
) -> dict[str, Any]:
    """What the optimizer keeps for a parameter, saved in `shape`, of the types and shapes that it makes.

    An optimizer that is not elementwise is not asked: its state is taken as it is, with the types that it has.
    """
    if not isinstance(optimizer, ELEMENTWISE_OPTIMIZERS):
        return dict(checks.keys(entries, entries, "the optimizer's state"))
    template = _stepped(optimizer, group, saved, parameter, shape)
    if isinstance(entries, Mapping) and AVERAGE in entries:
        template[AVERAGE] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    checks.keys(entries, template, "the optimizer's state")
    return template


def _stepped(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    saved: Mapping[str, Any],
    like: nn.Parameter,
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """State that an optimizer of this kind with the saved options makes in one step on zeros of a shape.

    Its constructor refuses options out of range, so it is given all that it takes.
    """
    options = {key: _as(value, group.get(key)) for key, value in saved.items() if key != "params"}
    takes = inspect.signature(type(optimizer)).parameters
    stand_in = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))
    stand_in.grad = torch.zeros_like(stand_in)
    fresh = type(optimizer)([stand_in], **{key: value for key, value in options.items() if key in takes})
    fresh.param_groups[0].update(options)
    fresh.step()
    return dict(fresh.state[stand_in])


def _as(value: Any, like: Any) -> Any:
    """An option as the optimizer has it: JSON knows no tuples."""
    return tuple(value) if isinstance(like, tuple) and isinstance(value, list) else value


def _set_layer(layer: SparseLayer, state: Mapping[str, Any]) -> None:
    parameter = layer.parameter
    index = state["index"].long().to(parameter.device)
    layer.set_index(index)
    layer.parameter.copy_(spread(layer, state["values"], 0.0))
    layer.set_chosen(None if state["chosen"] is None else state["chosen"].to(parameter.device))


def spread(layer: SparseLayer, active: Tensor, elsewhere: float) -> Tensor:
    """A tensor laid out like the layer's parameter, with `active` [K] at the active weights."""
    parameter = layer.parameter
    if parameter.shape != layer.shape:  # compact: the active weights and nothing else
        return active.to(parameter.device)
    full = torch.full((parameter.numel(),), elsewhere, dtype=active.dtype, device=parameter.device)
    full[layer.index] = active.to(parameter.device)
    return full.view(parameter.shape)


def _set_optimizer(
    model: nn.Module,
    layers: Layers,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    templates: Mapping[str, Mapping[str, Any]],
) -> None:
    sparse = {id(layer.parameter): layer for layer in layers}
    whole = {f"{name}.weight": layer.shape for name, layer in unheld(model, layers).items()}
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        for key, value in saved.items():
            if key != "params":
                group[key] = _as(value, group.get(key))
    optimizer.state.clear()
    for parameter, name in parameter_names(model).items():
        layer = sparse.get(id(parameter))
        if name not in state["state"]:
            continue
        for key, value in state["state"][name].items():
            like = templates[name][key]
            if isinstance(value, Tensor):
                if layer is not None and value.dim() == 1:
                    value = spread(layer, value, fresh_state(optimizer, parameter, key))
                value = _shaped(value, whole[name], parameter.shape) if name in whole else value
                value = value.to(like.device).clone()
                if value.shape == parameter.shape:  # as the optimizer made it: beside the weight, in its order
                    memory.lay_out(value, parameter.stride())
            optimizer.state[parameter][key] = value
