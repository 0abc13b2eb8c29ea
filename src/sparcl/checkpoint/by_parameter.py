"""What a method remembers of each parameter (`Method.by_parameter`), in the one form that every backend shares.

In its state a tensor under a parameter's number, and of that parameter's shape, belongs to it, however deep it lies. As
optimizer state is (canonical.py), it is kept at the active weights [K] of a layer that a sparsifier holds, and has the
dense shape where no sparsifier holds a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sparcl.checkpoint.canonical import Layers, at_active, spread, unheld
from sparcl.checkpoint.tree import State
from sparcl.nn import memory
from sparcl.nn.layers import SparseLayer

Form = Callable[[int, Tensor], Tensor]
"""Of the parameter of a number and a tensor that belongs to it."""


def capture(remembered: State, model: nn.Module, layers: Layers) -> State:
    """A method's `state_dict`, in the shared form."""
    known = _parameters(model, layers)

    def shared(i: int, tensor: Tensor) -> Tensor:
        parameter, layer, dense = known[i]
        if tensor.shape != parameter.shape:
            return tensor
        active: Tensor = at_active(tensor, layer)
        return active if dense is None else active.reshape(dense)

    return _each(remembered, len(known), shared)


def restore(saved: Mapping[str, Any], model: nn.Module, layers: Layers) -> State:
    """What `capture` gave, as this model's backend keeps it; the masks are in place.

    What the masks leave out is zero. What does not fit a parameter stays as it is, for the method to refuse.
    """
    known = _parameters(model, layers)

    def own(i: int, tensor: Tensor) -> Tensor:
        parameter, layer, dense = known[i]
        if layer is not None and tensor.shape == (len(layer.index),):
            tensor = spread(layer, tensor, 0)
        elif dense is not None and tensor.shape == dense:
            tensor = tensor.reshape(parameter.shape)
        if tensor.shape == parameter.shape:
            tensor = tensor.clone()
            memory.lay_out(tensor, parameter.stride())
        return tensor

    return _each(saved, len(known), own)


def _parameters(
    model: nn.Module, layers: Layers
) -> list[tuple[nn.Parameter, SparseLayer | None, tuple[int, ...] | None]]:
    """Each parameter, the layer by which a sparsifier holds it, and the dense shape where it is compact and unheld."""
    held = {id(layer.parameter): layer for layer in layers}
    dense = {id(layer.values): tuple(layer.shape) for layer in unheld(model, layers).values()}
    return [(p, held.get(id(p)), dense.get(id(p))) for p in model.parameters()]


def _each(state: Mapping[str, Any], count: int, form: Form) -> State:
    """The state with `form` of every tensor that belongs to one of `count` parameters."""
    made: State = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            made[key] = _each(value, count, form)
        elif isinstance(value, Tensor) and key.isdecimal() and int(key) < count:
            made[key] = form(int(key), value)
        else:
            made[key] = value
    return made
