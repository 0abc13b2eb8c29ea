"""DGM, dynamic gradient masking: update only the gradients that matter (SparCL, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.nn.layers import Prunable
from sparcl.sparsity.collected import StepRanked
from sparcl.sparsity.importance import Losses, cgi, importance_gradients, lowest
from sparcl.sparsity.patterns import Pattern


class DGM(StepRanked):
    """Dynamic gradient masking by continual gradient importance (CGI).

    In each prunable layer the share `frozen` of the *active* weights with the least CGI is not updated until the next
    choice. The choice is made before the backward pass, so that those gradients need not be computed.

    Args:
        frozen: g, share of each layer's active weights that is not updated, 0 to less than 1; one is, at least.
        interval: iterations between two choices (published: 30); every task begins with one.
        ranking: `step` chooses by the two gradients of the training step before, at intervals that a fiftieth of the
            task's steps pays for; `fresh` (published) by passes over fresh batches, as does a loop that does not hand
            its gradients over (`Losses.from_steps`).
        alpha, beta: weight of the present task's and of the buffer's gradient in CGI.
        pattern: which weights are chosen together; see Static.
        prunable: which layers; None for the published choice.
    """

    name = "dgm"
    borderless = True

    def __init__(
        self,
        frozen: float = 0.2,
        *,
        interval: int = 30,
        ranking: str = "step",
        alpha: float = 0.5,
        beta: float = 0.5,
        pattern: Pattern | str | None = None,
        prunable: Prunable = None,
    ) -> None:
        super().__init__(Pattern() if pattern is None else pattern, prunable)
        if not 0.0 <= frozen < 1.0:
            raise ConfigError(f"gradient sparsity {frozen} is not allowed; use a share from 0 to less than 1")
        if interval < 1:
            raise ConfigError(f"DGM interval {interval} is not allowed; use 1 iteration or more")
        self.frozen, self.interval = frozen, interval
        self.iteration = 0
        self._set_ranking(ranking, alpha, beta)
        self.shares = False
        """Whether what is collected is another's as well, who keeps it through a checkpoint (SparCL)."""
        self._owed, self._ready = True, False  # a choice is due; a step has been read for it

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        del index, samples, epochs
        self._begin_ranking(losses)
        self.iteration, self._owed, self._ready = 0, True, False

    def begin_stream(self, losses: Losses | None = None) -> None:
        self.begin_task(0, samples=0, epochs=1, losses=losses)

    def begin_step(self, step: int, spent: float | None = None) -> None:
        del step, spent
        if not self.shares:
            self.collected.begin_step()
        if self.frozen > 0 and (self._comes_to_choose() or self._stale()):
            self.choose()
        self.iteration += 1
        self._owed = self._owed or self.iteration % self.interval == 0
        if self.frozen > 0 and self._owed:
            self.collected.ask(window=False)

    def _comes_to_choose(self) -> bool:
        return self._ready if self.from_steps else self.iteration % self.interval == 0

    def take_gradients(self, task: Sequence[Tensor], replay: Sequence[Tensor], extra: int, samples: int) -> None:
        super().take_gradients(task, replay, extra, samples)
        self._ready = self._owed

    def choose(self) -> None:
        """Choose anew which active weights are updated."""
        task, replay = self._gradients()
        frozen = 0
        for layer, g, m in zip(self.layers, task, replay, strict=True):
            score = self.pattern.score(cgi(g, m, self.alpha, self.beta), layer.index, layer.shape)
            rests = lowest(score, self.resting(len(score)))
            layer.set_chosen(self.pattern.spread(~rests, layer.index, layer.shape))
            frozen += int(rests.sum()) * self.pattern.block
        self._owed = self._owed and not self._ready
        self._ready = False
        self.notify("dgm.choose", {"frozen": frozen, "active": sum(len(la.index) for la in self.layers)})

    def resting(self, units: int) -> int:
        """How many of a layer's active units are not updated: never all of them, or none would be chosen again."""
        return min(round(self.frozen * units), max(units - 1, 0))

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the steps read last or, from one fresh batch of each, of the task and of the buffer."""
        if self.losses is None:
            raise ConfigError("DGM ranks gradients: hand begin_task the method's losses")
        if self.from_steps:
            self.announce_ranking()
            return self.collected.means()
        for layer in self.layers:
            layer.set_chosen(None)  # every active gradient is wanted in the two passes below
        task = importance_gradients(self.model, self.layers, self.losses.task, 1)
        return task, importance_gradients(self.model, self.layers, self.losses.replay, 1)

    def end_task(self) -> None:
        self._begin_ranking(None)

    def _stale(self) -> bool:
        """A mask update since the last choice cleared it."""
        if self.from_steps and not self.collected.batches:
            return False  # nothing is known yet
        return any(la.chosen is None and self.resting(len(self.active_units(la))) > 0 for la in self.layers)

    def state_dict(self) -> dict[str, Any]:
        own = {} if self.shares else {"collected": self.collected.state_dict()}
        choice = {"iteration": self.iteration, "owed": self._owed, "ready": self._ready}
        return {**super().state_dict(), **choice, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.iteration = checks.integer(state["iteration"], "DGM's iteration")
        self._owed, self._ready = bool(state["owed"]), bool(state["ready"])
        if not self.shares:
            self.collected.load_state_dict(state["collected"], self.layers)
