"""Which parameters train: those that the optimizer holds, of the model as it was when the Learner was made.

A model is the user's, who may exchange a layer, append one, freeze or unfreeze weights at any time. What would then go
wrong in silence is said in one line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from sparcl.nn.layers import SparseLayer, elementwise_state

AGAIN = "make a new Learner of the model as it is now"

CLAIMED = "_claimed_by"
"""Attribute of a layer: the number of the Learner that was made of it last."""
NUMBERS = itertools.count(1)


class Trained:
    """Remembers a model's parameters, and which of them its optimizer left out on purpose."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held, own = _held(optimizer), {id(p) for p in model.parameters()}
        self.model, self.optimizer = model, optimizer
        self.number = 0
        self.known = list(model.parameters())
        self.left_out = [p for p in self.known if id(p) not in held and p.requires_grad]
        self.beside = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]

    def claim(self, layers: Iterable[SparseLayer]) -> None:
        """From now on these layers' masks are moved for this optimizer alone."""
        self.number = next(NUMBERS)
        for layer in layers:
            setattr(layer, CLAIMED, self.number)

    def misfit(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, layers: Sequence[SparseLayer], *, by_parameter: str
    ) -> str | None:
        """What would not train as it seems, in one line; None where all is well.

        Args:
            layers: those of the sparsifier.
            by_parameter: name of the method if it remembers something of each parameter, else empty.
        """
        names = {id(p): name for name, p in model.named_parameters()}
        if model is not self.model:
            return f"the Learner's model is another than the one it was made with: {AGAIN}"
        held, allowed = _held(optimizer), {id(p) for p in self.left_out}
        idle = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held | allowed]
        if idle:
            return (
                f"the optimizer does not hold {_listed(idle)}, added, exchanged or unfrozen since the Learner was made,"
                f" so it would never train: {AGAIN}"
            )
        beside = {id(p) for p in self.beside}
        if lost := sum(1 for i in held if i not in names and i not in beside):
            return f"the optimizer holds {lost} parameter(s) that the model no longer has: {AGAIN}"
        if by_parameter and [id(p) for p in self.known] != list(names):
            return f"method {by_parameter} remembers each parameter, and the model has others now: {AGAIN}"
        if layers and optimizer is not self.optimizer:
            return f"the sparsifier keeps the state of the optimizer that it was given, and this is another: {AGAIN}"
        if any(getattr(layer, CLAIMED, self.number) != self.number for layer in layers):
            return f"another Learner was made of the model, and its masks are that one's now: {AGAIN}"
        for layer in layers:
            if getattr(layer, "moved_alone", False) and elementwise_state(optimizer, layer.parameter):
                return (
                    f"layer {layer.name} was given other active weights by load_state_dict, and the optimizer keeps the"
                    " state of the old ones: load weights before the first task, or use Learner.load"
                )
        return next((m for layer in layers if (m := _misfit_of(layer, names)) is not None), None)


def _misfit_of(layer: SparseLayer, names: dict[int, str]) -> str | None:
    """What is wrong with a prunable layer."""
    if id(layer.parameter) not in names:
        return f"layer {layer.name} is no longer in the model, but the sparsifier prunes it: {AGAIN}"
    if not layer.parameter.requires_grad:
        return f"layer {layer.name} is not trained (requires_grad is False): leave it out of `prunable`, and {AGAIN}"
    active = layer.gather(layer.parameter)
    if int(torch.count_nonzero(layer.parameter.detach())) != int(torch.count_nonzero(active)):
        return (
            f"layer {layer.name} has weights where its mask has none, written since the Learner was made:"
            " load weights before, or put zeros there"
        )
    return None


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _listed(names: Iterable[str]) -> str:
    first, *more = names
    return f"{first} and {len(more)} more" if more else first
