"""What a sparsifier is: the few calls that a training loop, the Learner's or the user's own, makes.

sparsifier.attach(model, optimizer)
for t, task in enumerate(tasks):
    sparsifier.begin_task(t, samples=len(task), epochs=E, losses=Losses(task=..., replay=...))
    for epoch in range(E):
        order = sparsifier.keep(torch.randperm(len(task)))      # DDR drops what is learned already
        sparsifier.begin_epoch(epoch, steps=len(order) // batch_size)
        for step, ids in enumerate(order.split(batch_size)):
            sparsifier.begin_step(step)                         # TDM moves the mask, DGM chooses gradients
            ... forward ...; sparsifier.after_forward(ids, logits, labels)
            ... backward ...; sparsifier.after_backward()
            optimizer.step(); sparsifier.after_step()
    sparsifier.end_task()

In a stream without borders: `begin_stream(losses)` once, then the steps, counted from 0, and no end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.nn.layers import (
    Prunable,
    SparseLayer,
    check_optimizer,
    elementwise_state,
    fresh_state,
    sparse_layers,
)
from sparcl.recorded import Recorded
from sparcl.sparsity.importance import Losses
from sparcl.sparsity.patterns import Pattern, make_pattern

Notify = Callable[[str, dict[str, Any]], None]
"""Told of every change that a sparsifier makes: an event's name and its figures."""


def ignore(event: str, figures: dict[str, Any]) -> None:
    """Tell nobody."""
    del event, figures


class Sparsifier(Recorded):
    """The calls, all of which do nothing: this is also the `dense` sparsifier."""

    name = "dense"
    uses_losses = False
    """Whether the sparsifier calls the losses it is handed."""
    prunable: Prunable = None
    prunes = False
    """Whether weights are ever inactive or frozen (and so whether layers are worth converting)."""
    moves = False
    """Whether masks change once training has begun."""
    drops_last = False
    """Whether its source leaves out an epoch's last batch where that has fewer samples; the hosts' do not."""
    borderless: ClassVar[bool] = True
    """Whether it works in a stream without tasks: of each class its own word, since it goes by other calls then."""
    ranking: str = "step"
    """`fresh` where passes of their own, over the task's samples alone, are made for ranking."""
    pattern = Pattern()

    def __init__(self) -> None:
        self.layers: list[SparseLayer] = []
        self.notify: Notify = ignore
        self.removed = 0
        """Samples of the present task that have left it (DDR)."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Self:
        """Bind to a model and the optimizer of its parameters, once.

        Raises:
            ConfigError: it is bound already, nothing is prunable, a pattern does not fit, or the optimizer is not
                elementwise.
        """
        del model, optimizer, seed
        return self

    def trains(self, model: nn.Module) -> None:
        """Training passes go through this part of the model alone, which has the same layers by the same names."""

    def check_unbound(self) -> None:
        """Raise ConfigError if it is bound: its masks are those of the other Learner's model."""
        if self.layers:
            raise ConfigError(f"this {self.name} belongs to another Learner: make a new one for each")

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        """Task `index` (from 0) begins: `samples` training samples for `epochs` epochs."""

    def resume_task(self, losses: Losses | None) -> None:
        """Training goes on inside a task or a stream after `load_state_dict`: take the losses, change nothing."""

    def check_borderless(self) -> None:
        """Raise ConfigError unless it works in a stream without borders."""
        if not vars(type(self)).get("borderless", False):
            raise ConfigError(
                f"sparsifier {self.name} needs the borders of tasks; these do without: dense, static, sparcl, and TDM"
                " and DGM alone"
            )

    def begin_stream(self, losses: Losses | None = None) -> None:
        """A stream without borders begins: from here on schedules go by steps, until a task begins."""

    def keep(self, ids: Tensor) -> Tensor:
        """Those of the sample numbers `ids` (int64 [N]) that are still trained on, in their order."""
        return ids

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Epoch `epoch` (from 0) of the task begins and has `steps` steps."""

    def begin_step(self, step: int, spent: float | None = None) -> None:
        """Step `step` (from 0) of the epoch begins: masks may change now, or where a task begins or ends.

        `spent` is the share of the task's budget that is spent where that is no number of epochs, else None.
        """

    def wants_gradients(self) -> bool:
        """Asked once a step, before its forward pass: whether it wants this step's gradients apart, to rank by them."""
        return False

    def take_gradients(self, task: Sequence[Tensor], replay: Sequence[Tensor], extra: int, samples: int) -> None:
        """The gradients of L~(D_t) and of L(M), [K] a layer, that `wants_gradients` asked for.

        `extra` samples passed back for them beside the `samples` that the step passes forward and back.
        """

    def after_forward(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """The task's batch was predicted: sample numbers [N], logits [N, C], labels [N]."""

    def after_backward(self) -> None:
        """Gradients are there, the optimizer has not yet moved."""

    def mask_gradients(self) -> None:
        """Clear the gradient of all that is inactive or not chosen."""
        for layer in self.layers:
            layer.mask_gradient()

    def scale_gradients(self) -> None:
        """By what `after_backward` makes of them, where it does."""

    def after_step(self) -> None:
        """The optimizer has moved."""

    def end_task(self) -> None:
        """The task is over."""

    def densities(self, shapes: Sequence[tuple[int, ...]]) -> list[float]:
        """Share of each prunable layer's weights that is active at a task's end, given all their shapes, in order."""
        return [1.0] * len(shapes)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as nested dicts of tensors and JSON values; masks are saved with the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        del state


class MaskSparsifier(Sparsifier):
    """Shared by everything that moves masks or freezes weights: binding, blocks, and keeping the frozen frozen."""

    uses_losses = True
    prunes = True
    drops_last = True

    def __init__(self, pattern: Pattern | str, prunable: Prunable) -> None:
        super().__init__()
        self.pattern = make_pattern(pattern)
        self.prunable = prunable
        self.losses: Losses | None = None
        self._frozen: list[tuple[nn.Parameter, Tensor, Tensor, dict[str, Tensor]]] = []

    def resume_task(self, losses: Losses | None) -> None:
        self.losses = losses

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Self:
        self.check_unbound()
        check_optimizer(optimizer)
        layers = sparse_layers(model, self.prunable)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for layer in layers:
            module = model.get_submodule(layer.name)
            self.pattern.check(layer.name, layer.shape, int(getattr(module, "groups", 1)))
            if id(layer.parameter) not in held:
                raise ConfigError(
                    f"the optimizer does not hold the weight of layer {layer.name}: create it after conversion"
                )
        self.model, self.optimizer, self.layers = model, optimizer, layers
        self.generator = seeds.generator(seed, self.name)
        return self

    def check_bound(self) -> None:
        """Raise ConfigError if it is bound to no model: nothing would be sparse."""
        if not self.layers:
            raise ConfigError(
                f"this {self.name} is bound to no model yet: call attach(model, optimizer) before the first task"
            )

    def trains(self, model: nn.Module) -> None:
        self.model = model

    def after_backward(self) -> None:
        """Clear what must not move, and remember the frozen weights with their optimizer state, bit for bit."""
        self.check_bound()
        self.mask_gradients()
        if not moves_without_gradient(self.optimizer):
            return
        self._frozen = []
        for layer in self.layers:
            entries = layer.frozen_entries()
            if entries is not None:
                parameter = layer.parameter
                state = elementwise_state(self.optimizer, parameter)
                before = {key: entries_of(tensor, entries) for key, tensor in state.items()}
                self._frozen.append((parameter, entries, entries_of(parameter.detach(), entries), before))

    def after_step(self) -> None:
        """Put the frozen back: a zero gradient is not a frozen weight under momentum, decay or Adam.

        State that this step created (the first step's momentum holds the decay) starts fresh for them.
        """
        for parameter, entries, values, before in self._frozen:
            set_entries(parameter.detach(), entries, values)
            for key, tensor in elementwise_state(self.optimizer, parameter).items():
                fresh = fresh_state(self.optimizer, parameter, key)
                set_entries(tensor, entries, before.get(key, fresh))
        self._frozen = []

    def active_units(self, layer: SparseLayer) -> Tensor:
        return self.pattern.of_index(layer.index, layer.shape)

    def set_units(self, layer: SparseLayer, units: Tensor) -> tuple[Tensor, Tensor]:
        """Make exactly these units (ascending) active; where the survivors were, and where they are."""
        return layer.set_index(self.pattern.expand(units, layer.shape), self.optimizer)

    def draw_unused(self, layer: SparseLayer, active: Tensor, count: int, barred: Tensor | None = None) -> Tensor:
        """`count` unused units at random (fewer if there are fewer), none of them active or `barred`, ascending.

        The draw is made on the CPU so that every device and backend grows the same.
        """
        units = self.pattern.units(layer.shape)
        free = np.ones(units, dtype=np.bool_)
        taken = [active] if barred is None else [active, barred]
        for unfree in taken:
            free[unfree.cpu().numpy()] = False
        unused = units - sum(map(len, taken))
        return draw_free(torch.from_numpy(free), unused, count, self.generator).to(active.device)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def entries_of(tensor: Tensor, entries: Tensor) -> Tensor:
    """A copy of the values at flat, row-major positions, int64 [n], whatever the order in memory."""
    return tensor.reshape(-1)[entries]


def set_entries(tensor: Tensor, entries: Tensor, values: Tensor | float) -> None:
    """Write at flat, row-major positions, int64 [n], whatever the order in memory."""
    if tensor.is_contiguous():
        tensor.view(-1)[entries] = values
    else:
        tensor[torch.unravel_index(entries, tensor.shape)] = values


def draw_free(free: Tensor, unused: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions, int64, ascending, of the `unused` that are `free` (bool [M]; all of them if there are fewer).

    Every set of them is as likely as any other. Where most are free and few are asked for, positions are drawn until
    enough are free and differ, so that the work follows `count`, and what is too many leaves at random.
    """
    if 2 * count > unused or 4 * unused < len(free):
        candidates = free.nonzero().squeeze(1)
        return candidates[torch.randperm(unused, generator=generator)[:count]].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while (missing := count - len(drawn)) > 0:
        asked = missing * len(free) // unused + count // 8 + 8
        more = torch.randint(len(free), (asked,), generator=generator).numpy()
        found = np.sort(np.concatenate([drawn.numpy(), more[free.numpy()[more]]]))
        drawn = torch.from_numpy(found[np.diff(found, prepend=-1) > 0])
    while (surplus := len(drawn) - count) > 0:
        stays = torch.ones(len(drawn), dtype=torch.bool)
        stays[torch.randint(len(drawn), (surplus,), generator=generator)] = False
        drawn = drawn[stays]
    return drawn


def moves_without_gradient(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a weight with a zero gradient may still move; plain SGD is the one case where it never does."""
    return not (
        isinstance(optimizer, torch.optim.SGD)
        and all(g["momentum"] == 0 and g["weight_decay"] == 0 for g in optimizer.param_groups)
    )


ROUNDING = 1e-9
"""Of a share or a number of epochs: a moment in the middle of a step comes with it, however its fraction is rounded."""


class Moments:
    """Fixed fractions of a task at which something happens, rounded to steps, for tasks of one epoch or of fifty.

    A moment that an epoch, shortened by removed samples, did not reach is due at the next step, as is one that came
    sooner than `apart` steps after the last or after the task's begin: those that wait are due together, but none from
    the fraction `until` on. However small `apart` is, what a new task expanded is trained at least once.

    In a stream without borders (`begin_stream`) there is one every so many steps, without an end.
    """

    def __init__(self, fractions: Sequence[float], apart: int = 1, until: float = 1.0) -> None:
        self.fractions, self.apart, self.until = tuple(fractions), apart, until
        self.begin_task(1)

    def begin_task(self, epochs: int) -> None:
        self.epochs, self.passed, self.asked = epochs, 0, 0
        self.last = 0
        """`asked`, when a moment was due last."""
        self.interval: int | None = None
        self.begin_epoch(0, 1)

    def begin_stream(self, interval: int) -> None:
        self.begin_task(1)
        self.interval = interval

    def begin_epoch(self, epoch: int, steps: int) -> None:
        self.epoch, self.steps = epoch, max(steps, 1)

    def due(self, step: int, spent: float | None = None) -> int:
        """How many moments have come since the last call."""
        self.asked += 1
        if self.interval is not None:
            return int(self.asked > 1 and (self.asked - 1) % self.interval == 0)
        if self.epoch == step == 0:
            return 0
        now, whole = (self.epoch + (step + 0.5) / self.steps, self.epochs) if spent is None else (spent, 1)
        passed = sum(1 for f in self.fractions if f * whole < now + ROUNDING)
        due = passed - self.passed
        if due <= 0 or self.asked - self.last < self.apart or now >= self.until * whole:
            return 0
        self.passed, self.last = passed, self.asked
        return due

    def near(self, step: int, window: int, spent: float | None = None) -> bool:
        """Whether, after step `step` of this epoch, one comes within `window` steps (all taken to be alike)."""
        if self.interval is not None:
            return (self.asked - 1 + window) // self.interval > (self.asked - 1) // self.interval
        return any(self._near(step, ahead, spent) for ahead in range(1, window + 1))

    def _near(self, step: int, ahead: int, spent: float | None) -> bool:
        """Whether one comes with the step that is so many `ahead`, if none does before."""
        then, whole = self.epoch + (step + ahead + 0.5) / self.steps, self.epochs
        if spent is not None:  # in the middle of the step that `due` was asked about last
            then, whole = spent * (1 + ahead / (self.asked - 0.5)), 1
        if self.asked + ahead - self.last < self.apart or then >= self.until * whole:
            return False
        return sum(1 for f in self.fractions if f * whole < then + ROUNDING) > self.passed

    def state_dict(self) -> dict[str, int]:
        counts = {"passed": self.passed, "asked": self.asked, "last": self.last}
        counts |= {"epoch": self.epoch, "steps": self.steps}
        stream = {} if self.interval is None else {"interval": self.interval}
        return {"epochs": self.epochs, **counts, **stream}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs, self.steps = (
            checks.integer(state["epochs"], "epochs", 1),
            checks.integer(state["steps"], "steps", 1),
        )
        self.passed = checks.integer(state["passed"], "passed moments", most=len(self.fractions))
        self.epoch = checks.integer(state["epoch"], "epoch")
        self.asked = checks.integer(state["asked"], "steps asked about")
        self.last = checks.integer(state["last"], "the last moment", most=self.asked)
        self.interval = checks.integer(state["interval"], "interval", 1) if "interval" in state else None
