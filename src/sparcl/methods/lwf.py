"""LwF, learning without forgetting (Li & Hoiem, ECCV 2016): answer the new samples as the old network did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.methods.method import Batch, Method, check_not_negative, only
from sparcl.methods.respond import check_answers, loaded_answers, logits_of
from sparcl.streams.task import Task


class LwF(Method):
    """L(D_t), over the classes seen so far, + α·distillation of the old classes (eq. 2-3).

    The old network's answers to the task's samples, not augmented, are recorded when the task begins. The paper's
    warm-up of the new head alone is left out.

    Args:
        alpha: α, weight of the distillation.
        temperature: T by which both answers are softened (published: 2).
    """

    name = "lwf"

    def __init__(self, *, alpha: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        check_not_negative(self.name, alpha=alpha)
        if not 0.0 < temperature < math.inf:
            raise ConfigError(f"temperature {temperature} is not allowed for lwf; use a number above 0")
        self.alpha, self.temperature = alpha, temperature
        self.old: list[int] = []
        self.recorded: Tensor | None = None  # logits [samples of the task, C] of the network before the task

    def begin_task(self, task: Task) -> None:
        if self.old:
            self.recorded = logits_of(self.host.model, task.train.inputs, task, self.host.device)

    def resume_task(self, task: Task) -> None:
        check_answers(self.recorded, task)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        loss = F.cross_entropy(only(logits, (*self.old, *batch.task.classes)), batch.labels)
        if self.recorded is not None:
            before = self.recorded[batch.ids.to(self.host.device)]
            loss = loss + self.alpha * distillation(logits[:, self.old], before[:, self.old], self.temperature)
        return loss, logits

    def end_task(self, task: Task) -> None:
        self.old, self.recorded = list(dict.fromkeys((*self.old, *task.classes))), None  # a class may return

    def state_dict(self) -> dict[str, Any]:
        return {"old": self.old, **({} if self.recorded is None else {"recorded": self.recorded})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.old = [checks.integer(k, "a class") for k in state["old"]]
        self.recorded = loaded_answers(state.get("recorded"), self.host.device)


def distillation(logits: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softmax(logits / T) against softmax(before / T), both [N, C], mean over N."""
    return F.cross_entropy(logits / temperature, (before / temperature).softmax(dim=1))
