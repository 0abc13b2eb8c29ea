"""DDR, dynamic data removal: samples that are learned already leave the task (SparCL, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import checks
from sparcl.errors import ConfigError, unknown
from sparcl.recorded import refuse
from sparcl.sparsity.importance import Losses
from sparcl.sparsity.sparsifier import Moments, Sparsifier

REMOVAL_MOMENTS = (0.1, 0.2, 0.3, 0.4)
"""Fractions of a task at which samples leave (published: epochs 5, 10, 15 and 20 of 50)."""

MISCLASSIFIED, FORGETTING = SCORES = ("misclassified", "forgetting")

REMOVED = 0.3
"""Share of a task's samples that leaves (published)."""


class DDR(Sparsifier):
    """Dynamic data removal.

    Args:
        removed: share of the task's samples that has left after the last removal, 0 to less than 1. None: the
            published .3 where a task has epochs, and nothing under a budget of steps or seconds, where what leaves
            makes no task shorter and has not earned its place (docs/method.md); .3 there too with another score.
        score: `misclassified` counts how often a sample is predicted wrongly since the last removal (the paper);
            `forgetting` counts changes from right to wrong since then, and a sample that was not right once since then
            stays, for it is not learned yet (the published code gives it a score above all others).
    """

    name = "ddr"
    drops_last = True

    def __init__(self, removed: float | None = REMOVED, *, score: str = MISCLASSIFIED) -> None:
        super().__init__()
        if removed is not None and not 0.0 <= removed < 1.0:
            raise ConfigError(f"share of removed samples {removed} is not allowed; use 0 to less than 1")
        if score not in SCORES:
            raise ConfigError(unknown("DDR score", score, SCORES))
        if removed == 0 and score != MISCLASSIFIED:
            refuse(f"DDR score {score} says which samples leave, and a share of 0 removes none; leave one out")
        self.share, self.score = REMOVED if removed is None else removed, score
        self.by_epochs = removed is None and score == MISCLASSIFIED  # nobody asked for it
        self.removes = self.share > 0
        """Whether samples leave under the budget of the present step."""
        self.moments = Moments(REMOVAL_MOMENTS)
        self._start(0)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Self:
        """DDR looks at predictions alone; the seed decides between samples with equal counts."""
        del model, optimizer
        self.generator = seeds.generator(seed, self.name)
        return self

    def _start(self, samples: int) -> None:
        self.removed = 0
        self.kept = torch.ones(samples, dtype=torch.bool)
        self.count = torch.zeros(samples, dtype=torch.int32)
        self.seen = torch.zeros(samples, dtype=torch.bool)
        self.was_right = torch.zeros(samples, dtype=torch.bool)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        del index, losses
        self._start(samples)
        self.moments.begin_task(epochs)

    def rest(self) -> None:
        """In a stream without borders no sample comes twice, and so none is removed."""
        self._start(0)
        self.moments.begin_task(1)
        self.moments.passed = len(REMOVAL_MOMENTS)

    def keep(self, ids: Tensor) -> Tensor:
        return ids[self.kept[ids]]

    def begin_epoch(self, epoch: int, steps: int) -> None:
        self.moments.begin_epoch(epoch, steps)

    def begin_step(self, step: int, spent: float | None = None) -> None:
        self.removes = self.share > 0 and (spent is None or not self.by_epochs)
        if self.moments.due(step, spent) and self.removes:
            self.remove()

    def after_forward(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Note who was predicted wrongly; read at the next removal only, so that a GPU is not waited for."""
        if self.removes and self.moments.passed < len(REMOVAL_MOMENTS):
            self._pending.append((ids, logits.detach().argmax(dim=1) != labels))

    def remove(self) -> None:
        """The samples with the lowest score leave, as many as the moments passed so far ask for.

        Only samples seen since the last removal can leave: nothing is known of the others. Equal counts are decided
        by a random draw, not by the order of the data. Two samples always stay: batch statistics need them. Then
        everything that is known of a sample starts anew.
        """
        self._settle()
        samples = len(self.kept)
        total = min(round(self.share * samples * self.moments.passed / len(REMOVAL_MOMENTS)), samples - 2)
        planned = total - self.removed
        known = self.seen
        if self.score == FORGETTING:  # neither right at the end nor ever forgotten: never right
            known = known & (self.was_right | (self.count > 0))
        candidates = (self.kept & known).nonzero().squeeze(1)
        shuffled = candidates[torch.randperm(len(candidates), generator=self.generator)]
        leave = shuffled[torch.argsort(self.count[shuffled], stable=True)[: max(planned, 0)]]
        self.kept[leave] = False
        self.removed += len(leave)
        self.count.zero_()
        self.seen.zero_()
        self.was_right.zero_()
        self.notify("ddr.remove", {"removed": len(leave), "kept": int(self.kept.sum())})

    def _settle(self) -> None:
        """Add the noted predictions up, in order."""
        for ids, wrong in self._pending:
            wrong = wrong.cpu()
            self.count[ids] += (wrong & self.was_right[ids] if self.score == FORGETTING else wrong).int()
            self.was_right[ids] = ~wrong
            self.seen[ids] = True
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {
            "generator": self.generator.get_state(),
            "moments": self.moments.state_dict(),
            "removed": self.removed,
            "kept": self.kept,
            "count": self.count,
            "seen": self.seen,
            "was_right": self.was_right,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.moments.load_state_dict(state["moments"])
        kept = checks.tensor(state["kept"], "kept samples", torch.bool, (None,))
        self.removed = checks.integer(state["removed"], "removed samples", gone := int((~kept).sum()), gone)
        self.kept, shape = kept.clone(), tuple(kept.shape)
        self.count = checks.tensor(state["count"], "misclassification counts", torch.int32, shape).clone()
        self.seen = checks.tensor(state["seen"], "seen samples", torch.bool, shape).clone()
        self.was_right = checks.tensor(state["was_right"], "last predictions", torch.bool, shape).clone()
        self._pending = []
