"""TDM, task-aware dynamic masking: the network stays sparse, and its mask follows the tasks (SparCL, NeurIPS 2022).

Legend: s target sparsity, p share of a layer's units moved at an update, a unit is a weight or a block of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.nn.layers import Prunable, SparseLayer
from sparcl.nn.positions import merged, split
from sparcl.sparsity.collected import StepRanked
from sparcl.sparsity.importance import Losses, cwi, importance_gradients, lowest
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.sparsifier import Moments
from sparcl.sparsity.static import DEFAULT_SPARSITY, Static

UPDATE_MOMENTS = tuple(i / 10 for i in range(1, 9))
"""Fractions of a task at which the mask is updated: every 10 %, and none from 90 % on (published)."""

STEPS_APART = 10
"""Between two updates, at least: a newcomer is trained before it is judged, and in a task of 50 steps ranking stays
within a few percent. Published tasks have 1,560 between two.
"""

MAX_MOVED = 0.2
"""At most this share of the active units is removed or grown at once."""


def update_moments() -> Moments:
    """When a task's mask is updated."""
    return Moments(UPDATE_MOMENTS, STEPS_APART, until=0.9)


def updates_within(steps: int) -> int:
    """How many updates a task of so many steps has."""
    moments, count = update_moments(), 0
    moments.begin_epoch(0, steps)
    for step in range(steps):
        count += moments.due(step) > 0
    return count


class TDM(StepRanked, Static):
    """Task-aware dynamic masking by continual weight importance (CWI).

    Args:
        sparsity, pattern, distribution, prunable, first_mask: see Static.
        p_intra: share of all prunable units removed and grown at an update within a task.
        p_inter: share of all prunable units by which a new task (t > 1) expands the network. With both 0 masks stay.
        alpha, beta: weight of the present task's and of the buffer's gradient in CWI.
        batches: batches over which each of the two gradients is averaged.
        ranking: `step` takes the two gradients from training steps just before an update, as many of `batches` as a
            fiftieth of the task's steps pays for; `fresh` (published) from passes over fresh batches, as does a loop
            that does not hand its gradients over (`Losses.from_steps`).
        interval: steps between two updates in a stream without borders; they then move `p_intra` each, without an end,
            and nothing expands.

    Raises:
        ConfigError: a value outside its range.
    """

    name = "tdm"
    moves = True
    borderless = True

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        p_intra: float = 0.01,
        p_inter: float = 0.01,
        alpha: float = 0.5,
        beta: float = 0.5,
        batches: int = 4,
        ranking: str = "step",
        interval: int = 100,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
        first_mask: str = "magnitude",
    ) -> None:
        super().__init__(sparsity, pattern=pattern, distribution=distribution, prunable=prunable, first_mask=first_mask)
        for label, share in (("p_intra", p_intra), ("p_inter", p_inter)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"{label} is {share}; it is a share of the prunable weights, 0 to 1")
        if batches < 1:
            raise ConfigError(f"batches is {batches}; an importance gradient needs 1 or more")
        if interval < 1:
            raise ConfigError(f"TDM interval {interval} is not allowed; use 1 step or more")
        self.p_intra, self.p_inter = p_intra, p_inter
        self.batches, self.interval = batches, interval
        self.moments = update_moments()
        self._set_ranking(ranking, alpha, beta)

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        """New capacity comes first: from the second task on, expand to sparsity s - p_inter."""
        del samples
        self._begin_ranking(losses)
        self.moments.begin_task(epochs)
        if index > 0 and self.p_inter > 0:
            grown = 0
            for layer, target in zip(self.layers, self.target, strict=True):
                active = self.active_units(layer)
                new = self.draw_unused(layer, active, self.moved(layer, target, self.p_inter))
                self.set_units(layer, merged(active, new))
                grown += len(new)
            self.notify("tdm.expand", {"grown": grown * self.pattern.block, "active": self.active()})

    @property
    def changes(self) -> bool:
        """Whether the mask moves at all."""
        return self.sparsity > 0 and (self.p_intra > 0 or self.p_inter > 0)

    def begin_stream(self, losses: Losses | None = None) -> None:
        self._begin_ranking(losses)
        self.moments.begin_stream(self.interval)

    def begin_epoch(self, epoch: int, steps: int) -> None:
        self.moments.begin_epoch(epoch, steps)

    def begin_step(self, step: int, spent: float | None = None) -> None:
        self.collected.begin_step()
        changes = self.changes
        if self.moments.due(step, spent) and changes:
            self.update()
        ranks = changes and (self.alpha or self.beta)
        if ranks and (not self.collected.batches or self.moments.near(step, self.batches, spent)):
            self.collected.ask(window=self.moments.near(step, self.batches, spent))

    def update(self) -> None:
        """Remove by CWI down to s + p_intra (so shrinking first what a new task expanded), then grow back to s."""
        scores = self._cwi()
        self.collected.close_window()
        removed_total = grown_total = 0
        for i, (layer, score, target) in enumerate(zip(self.layers, scores, self.target, strict=True)):
            active = self.active_units(layer)
            unused = self.pattern.units(layer.shape) - len(active)
            moved = min(self.moved(layer, target, self.p_intra), unused)  # the removed cannot grow back at once
            removed, kept = self._remove(layer, active, score, target - moved)
            grown = self.draw_unused(layer, kept, target - len(kept), barred=removed)
            units = merged(kept, grown)
            self.collected.move(i, *self.set_units(layer, units), len(units) * self.pattern.block)
            removed_total, grown_total = removed_total + len(removed), grown_total + len(grown)
        figures = {"removed": removed_total * self.pattern.block, "grown": grown_total * self.pattern.block}
        self.notify("tdm.update", {**figures, "active": self.active()})

    def end_task(self) -> None:
        """Every task ends at exactly s, however few steps it had; what stays keeps DGM's choice, for the records."""
        if any(len(self.active_units(la)) > n for la, n in zip(self.layers, self.target, strict=True)):
            removed, choices = 0, [(layer.index, layer.chosen) for layer in self.layers]
            for layer, score, target, (index, chosen) in zip(
                self.layers, self._cwi(), self.target, choices, strict=True
            ):
                gone, kept = self._remove(layer, self.active_units(layer), score, target)
                self.set_units(layer, kept)
                if chosen is not None:
                    layer.set_chosen(chosen[torch.isin(index, layer.index).to(chosen.device)])
                removed += len(gone)
            self.notify("tdm.shrink", {"removed": removed * self.pattern.block, "active": self.active()})
        self._begin_ranking(None)

    def moved(self, layer: SparseLayer, target: int, share: float) -> int:
        """Units moved at once: `share` of all, but at most 20 % of the active and no more than the unused."""
        units = self.pattern.units(layer.shape)
        return min(round(share * units), int(MAX_MOVED * target), units - target)

    def _remove(self, layer: SparseLayer, active: Tensor, score: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Split the active units into (removed, the `count` most important kept), each ascending."""
        leaves = lowest(self.pattern.score(score, layer.index, layer.shape), len(active) - count)
        return split(active, leaves)

    def _cwi(self) -> list[Tensor]:
        """CWI of every active weight, [K] a layer; without losses, its magnitude alone."""
        weights = [layer.gather(layer.parameter) for layer in self.layers]
        if self.losses is None or self.alpha == self.beta == 0:
            return [w.abs() for w in weights]
        if self.from_steps:
            self.announce_ranking()
            task, replay = self.collected.means()
            return [cwi(w, g, m, self.alpha, self.beta) for w, g, m in zip(weights, task, replay, strict=True)]
        for layer in self.layers:
            layer.set_chosen(None)  # importance is asked of every active weight, frozen or not
        task = importance_gradients(self.model, self.layers, self.losses.task, self.batches)
        replay = importance_gradients(self.model, self.layers, self.losses.replay, self.batches)
        return [cwi(w, g, m, self.alpha, self.beta) for w, g, m in zip(weights, task, replay, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "moments": self.moments.state_dict(), "collected": self.collected.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])
        self.collected.load_state_dict(state["collected"], self.layers)
