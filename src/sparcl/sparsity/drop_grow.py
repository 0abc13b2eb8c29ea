"""What SET and RigL share: now and then drop a share of the active units and grow as many elsewhere.

Legend: U units of a layer (weights or blocks of them), n of them active, M positions of its dense weight.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.nn.layers import Prunable
from sparcl.nn.positions import merged, split
from sparcl.sparsity.importance import Losses, lowest
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.static import DEFAULT_SPARSITY, Static


class DropGrow(Static):
    """A mask that moves at fixed intervals, its number of active units exactly the same after every update.

    The two scores are all that tells one such sparsifier from another. What is dropped is not grown again at the same
    update, and a grown weight starts at 0.

    Args:
        sparsity, pattern, distribution, prunable, first_mask: see Static.
        fraction: share of the active units that an update moves.
        stop: no update after this share of a task.
    """

    moves = True

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        fraction: float,
        stop: float,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
        first_mask: str = "magnitude",
    ) -> None:
        super().__init__(sparsity, pattern=pattern, distribution=distribution, prunable=prunable, first_mask=first_mask)
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(f"fraction {fraction} is not allowed; it is a share of the active weights, 0 to 1")
        self.fraction, self.stop = fraction, stop
        self.iteration = self.steps = self.epochs = 0
        self.total = 0
        """Steps of the task, as far as is known by now."""
        self.last = 0
        """Iteration of the task's last update. The interval follows `total`, which is estimated anew at each step."""

    @abstractmethod
    def interval(self) -> int:
        """Iterations between two updates, 1 or more."""

    @abstractmethod
    def grow_scores(self) -> list[Tensor]:
        """Score of every position, float [M] a layer; the highest outside the mask grow."""

    def drop_scores(self) -> list[Tensor]:
        """Score of every active weight, [K] a layer; the lowest are dropped. Here: magnitude."""
        return [layer.gather(layer.parameter).abs() for layer in self.layers]

    def share(self) -> float:
        """Share of the active units that an update moves now."""
        return self.fraction

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        del index, samples
        self.check_bound()
        self.losses, self.epochs, self.iteration, self.last = losses, epochs, 0, 0

    def begin_epoch(self, epoch: int, steps: int) -> None:
        del epoch
        self.steps, self.total = steps, self.epochs * steps

    def begin_step(self, step: int, spent: float | None = None) -> None:
        del step
        if spent is not None:
            self.total = round((self.iteration + 0.5) / spent) if spent > 0 else 0
        waited = self.iteration - self.last
        if self.sparsity > 0 and 0 < self.iteration <= self.stop * self.total and waited >= self.interval():
            self.update()
            self.last = self.iteration
        self.iteration += 1

    def update(self) -> None:
        """Drop and grow, in every layer as many as there is room for."""
        drop, grow = self.drop_scores(), self.grow_scores()
        moved = 0
        for layer, drop_score, grow_score in zip(self.layers, drop, grow, strict=True):
            active, units = self.active_units(layer), self.pattern.units(layer.shape)
            count = min(round(self.share() * len(active)), units - len(active))
            leaves = lowest(self.pattern.score(drop_score, layer.index, layer.shape), count)
            grown = self._highest_unused(grow_score, layer.shape, active, count)
            _, kept = split(active, leaves)
            self.set_units(layer, merged(kept, grown))
            moved += count
        self.notify(f"{self.name}.update", {"moved": moved * self.pattern.block, "active": self.active()})

    def _highest_unused(self, score: Tensor, shape: tuple[int, ...], active: Tensor, count: int) -> Tensor:
        """The `count` highest-scored units outside `active`; among equals the first."""
        everywhere = torch.arange(math.prod(shape), device=score.device)
        per_unit = self.pattern.score(score, everywhere, shape)
        free = torch.ones(len(per_unit), dtype=torch.bool, device=score.device)
        free[active] = False
        unused = free.nonzero().squeeze(1)
        return unused[lowest(-per_unit[unused], count)]

    def end_task(self) -> None:
        self.losses = None

    def state_dict(self) -> dict[str, Any]:
        task = {"iteration": self.iteration, "steps": self.steps, "epochs": self.epochs, "total": self.total}
        return {**super().state_dict(), **task, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.iteration = checks.integer(state["iteration"], f"{self.name}'s iteration")
        self.steps = checks.integer(state["steps"], f"{self.name}'s steps")
        self.epochs = checks.integer(state["epochs"], f"{self.name}'s epochs")
        self.total = checks.integer(state["total"], f"{self.name}'s steps of a task")
        done = max(self.iteration - 1, 0)
        last = state.get("last", done - done % max(self.interval(), 1))  # up to 0.2.0 every multiple was one
        self.last = checks.integer(last, f"{self.name}'s last update")
