"""DGM, dynamic gradient masking: update only the gradients that matter (METHOD.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.nn.layers import Prunable
from sparcl.sparsity.importance import Losses, cgi, importance_gradients, lowest
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.sparsifier import MaskSparsifier


class DGM(MaskSparsifier):
    """Dynamic gradient masking by continual gradient importance (CGI).

    In each prunable layer the share `frozen` of the *active* weights with the least CGI is not updated until the next
    choice. The choice is made before the backward pass, so that those gradients need not be computed.

    Args:
        frozen: g, share of each layer's active weights that is not updated, 0 to less than 1.
        interval: iterations between two choices (published: 30); every task begins with one.
        alpha, beta: weight of the present task's and of the buffer's gradient in CGI.
        pattern: which weights are chosen together.
        prunable: which layers; None for the published choice.
    """

    name = "dgm"

    def __init__(
        self,
        frozen: float = 0.2,
        *,
        interval: int = 30,
        alpha: float = 0.5,
        beta: float = 0.5,
        pattern: Pattern | None = None,
        prunable: Prunable = None,
    ) -> None:
        super().__init__(pattern or Pattern(), prunable)
        if not 0.0 <= frozen < 1.0:
            raise ConfigError(f"gradient sparsity {frozen} is not allowed; use a share from 0 to less than 1")
        if interval < 1:
            raise ConfigError(f"DGM interval {interval} is not allowed; use 1 iteration or more")
        self.frozen, self.interval, self.alpha, self.beta = frozen, interval, alpha, beta
        self.iteration = 0

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        del index, samples, epochs
        self.losses = losses
        self.iteration = 0

    def begin_step(self, step: int, spent: float | None = None) -> None:
        del step, spent
        if self.frozen > 0 and (self.iteration % self.interval == 0 or self._stale()):
            self.choose()
        self.iteration += 1

    def choose(self) -> None:
        """Choose anew, from one fresh batch of the task and one of the buffer, which active weights are updated."""
        if self.losses is None:
            raise ConfigError("DGM ranks gradients: hand begin_task the method's losses")
        for layer in self.layers:
            layer.set_chosen(None)  # every active gradient is wanted in the two passes below
        task = importance_gradients(self.model, self.layers, self.losses.task, 1)
        replay = importance_gradients(self.model, self.layers, self.losses.replay, 1)
        frozen = 0
        for layer, g, m in zip(self.layers, task, replay, strict=True):
            score = self.pattern.score(cgi(g, m, self.alpha, self.beta), layer.index, layer.shape)
            rests = lowest(score, round(self.frozen * len(score)))
            layer.set_chosen(self.pattern.spread(~rests, layer.index, layer.shape))
            frozen += int(rests.sum()) * self.pattern.block
        self.notify("dgm.choose", {"frozen": frozen, "active": sum(len(la.index) for la in self.layers)})

    def end_task(self) -> None:
        self.losses = None

    def _stale(self) -> bool:
        """A mask update since the last choice cleared it."""
        return any(la.chosen is None and round(self.frozen * len(self.active_units(la))) > 0 for la in self.layers)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.iteration = checks.integer(state["iteration"], "DGM's iteration")
