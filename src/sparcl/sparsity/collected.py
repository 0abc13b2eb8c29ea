"""CWI's and CGI's two gradients out of training steps: when a step is asked for them, and what has been read.

Legend: K active weights of a layer. g_task = ∂L~(D_t)/∂w, g_replay = ∂L(M)/∂w, both [K].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError, unknown
from sparcl.nn.layers import SparseLayer
from sparcl.nn.positions import carried
from sparcl.sparsity.importance import Losses
from sparcl.sparsity.sparsifier import MaskSparsifier

RANKINGS = ("step", "fresh")

MOST_SHARE = 0.02
"""Of a task's steps that may be spent on gradients for ranking, in units of a step: scoring is not in it."""

BACKWARD = 2 / 3
"""A backward pass, as a share of a pass forward and back."""


class Allowance:
    """How much ranking a task's steps pay for: `share` of those begun, but always one step's worth of gradients.

    What a step that is read costs follows from the samples that pass back once more, so that it is the same wherever
    and however fast a run is.
    """

    def __init__(self) -> None:
        self.share, self.cost = MOST_SHARE, 0.0
        self.begin_task()

    def begin_task(self) -> None:
        self.steps, self.spent, self.reads = 0, 0.0, 0

    def allows(self) -> bool:
        """Whether the present step, of which `steps` went before, may be read."""
        return self.reads == 0 or self.spent + self.cost <= self.share * (self.steps + 1)

    def pay(self, extra: int, samples: int) -> None:
        """A step was read: `extra` samples passed back beside the `samples` that it passes forward and back."""
        self.cost = BACKWARD * extra / max(samples, 1)
        self.spent += self.cost
        self.reads += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "spent": self.spent, "reads": self.reads, "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = checks.integer(state["steps"], "the task's steps")
        self.reads = checks.integer(state["reads"], "the steps read for ranking")
        self.spent, self.cost = (float(state[name]) for name in ("spent", "cost"))
        if not (0.0 <= self.spent < float("inf") and 0.0 <= self.cost < float("inf")):
            raise CheckpointError("what ranking has cost must be 0 or more")


class Collected:
    """The two gradients of one or more steps, at the weights that were active then and still are.

    Steps before a mask update are averaged (a *window*); one that is read for anything else starts anew.
    """

    def __init__(self) -> None:
        self.budget = Allowance()
        self.begin_task()

    def begin_task(self) -> None:
        self.budget.begin_task()
        self.batches = 0
        self.in_window = self.asked = self.asked_window = False
        self.task: list[Tensor] = []
        self.replay: list[Tensor] = []

    def ask(self, *, window: bool) -> None:
        """This step's gradients are wanted, for a mask update that is near (`window`) or for a choice."""
        self.asked, self.asked_window = True, self.asked_window or window

    @property
    def wanted(self) -> bool:
        """Whether this step is to be read: somebody asked, and there is time for it."""
        return self.asked and self.budget.allows()

    def add(self, task: Sequence[Tensor], replay: Sequence[Tensor]) -> None:
        """The gradients, [K] a layer, of the present step."""
        if self.asked_window and self.in_window:
            for sums, new in ((self.task, task), (self.replay, replay)):
                for into, gradient in zip(sums, new, strict=True):
                    into += gradient
            self.batches += 1
        else:
            self.task, self.replay, self.batches = list(task), list(replay), 1
        self.in_window = self.asked_window

    def begin_step(self) -> None:
        self.asked = self.asked_window = False

    def end_step(self) -> None:
        self.budget.steps += 1

    def close_window(self) -> None:
        """A mask update has taken place: the next step that is read starts anew."""
        self.in_window = False

    def means(self) -> tuple[list[Tensor], list[Tensor]]:
        """Mean of each gradient over the steps, [K] a layer.

        Raises:
            ConfigError: none was handed over, though `Losses.from_steps` said so.
        """
        if not self.batches:
            raise ConfigError("nothing to rank by: a loop that says `from_steps` must call `take_gradients` when asked")
        return [g / self.batches for g in self.task], [g / self.batches for g in self.replay]

    def move(self, layer: int, in_old: Tensor, in_new: Tensor, active: int) -> None:
        """Follow the mask of a layer to so many active weights; survivors were at `in_old` and are at `in_new`.

        Nothing is known of a newcomer: it is given the mean magnitude of the layer, so that its rank is its weight's.
        """
        if not self.batches:
            return
        for sums in (self.task, self.replay):
            old = sums[layer]
            sums[layer] = carried(old, in_old, in_new, active, old.abs().mean() if len(old) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        sums = {
            name: {str(i): g for i, g in enumerate(gradients)}
            for name, gradients in (("task", self.task), ("replay", self.replay))
        }
        return {"budget": self.budget.state_dict(), "batches": self.batches, "in_window": self.in_window, **sums}

    def load_state_dict(self, state: Mapping[str, Any], layers: Sequence[SparseLayer]) -> None:
        self.begin_task()
        self.budget.load_state_dict(state["budget"])
        self.batches = checks.integer(state["batches"], "the steps summed up for ranking")
        self.in_window = bool(state["in_window"])
        self.task, self.replay = (self._loaded(state[name], layers) for name in ("task", "replay"))

    def _loaded(self, sums: Mapping[str, Any], layers: Sequence[SparseLayer]) -> list[Tensor]:
        held = layers if self.batches else ()
        checks.keys(sums, [str(i) for i in range(len(held))], "the gradients for ranking")
        return [
            checks.tensor(sums[str(i)], "a gradient for ranking", layer.parameter.dtype, (len(layer.index),))
            .to(layer.parameter.device)
            .clone()
            for i, layer in enumerate(held)
        ]


class StepRanked(MaskSparsifier):
    """What TDM and DGM share where they rank by gradients of training steps."""

    ranking: str
    collected: Collected

    def _set_ranking(self, ranking: str, alpha: float, beta: float) -> None:
        if ranking not in RANKINGS:
            raise ConfigError(unknown("ranking", ranking, RANKINGS))
        for label, weight in (("alpha", alpha), ("beta", beta)):
            if not 0.0 <= weight < math.inf:
                raise ConfigError(f"{label} {weight} is not allowed: a gradient's weight is a number of 0 or more")
        self.ranking, self.alpha, self.beta, self.collected = ranking, alpha, beta, Collected()

    @property
    def from_steps(self) -> bool:
        """Whether the loop hands over its steps' gradients, and they are to be used."""
        return self.ranking == "step" and self.losses is not None and self.losses.from_steps

    def _begin_ranking(self, losses: Losses | None) -> None:
        self.check_bound()
        self.losses = losses
        self.collected.begin_task()

    def announce_ranking(self) -> None:
        """Tell that scores are taken now: seconds until the event after this are the ranking's."""
        self.notify("importance.begin", {})
        self.notify("importance.end", {})

    def wants_gradients(self) -> bool:
        wanted = self.from_steps and self.collected.wanted
        if wanted:
            for layer in self.layers:
                layer.compute_frozen(True)
        return wanted

    def take_gradients(self, task: Sequence[Tensor], replay: Sequence[Tensor], extra: int, samples: int) -> None:
        self.collected.budget.pay(extra, samples)
        self.collected.add(task, replay)

    def after_backward(self) -> None:
        if self.collected.asked:
            for layer in self.layers:
                layer.compute_frozen(False)
        super().after_backward()

    def after_step(self) -> None:
        super().after_step()
        self.collected.end_step()
