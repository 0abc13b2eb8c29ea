"""FDR, function distance regularisation (Benjamin et al., ICLR 2019): stay close to what was answered, in L2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparcl.methods.balanced import TaskShares
from sparcl.methods.method import Batch, check_not_negative


class FDR(TaskShares):
    """L(D_t) + α·mean ‖softmax(logits) - softmax(stored logits)‖₂ on a buffer batch.

    Answers are stored at a task's end, equal random shares for all tasks. One step on the sum, as in the paper; the
    Mammoth framework takes two steps and leaves α out.

    Args:
        buffer_size: samples kept.
        alpha: α, weight of the distance.
        single_head: see Method.
        buffer_bytes, buffer_storage: see RehearsalMethod.
    """

    name = "fdr"
    grows = True
    stores_logits = True
    replays_alone = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        alpha: float = 0.3,
        single_head: bool = False,
        buffer_bytes: int | str | None = None,
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(buffer_size, single_head=single_head, buffer_bytes=buffer_bytes, buffer_storage=buffer_storage)
        check_not_negative(self.name, alpha=alpha)
        self.alpha = alpha

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        loss = self.cross_entropy(logits, batch)
        if (distance := self.replay_importance_loss()) is not None:
            loss = loss + distance
        return loss, logits

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None or replay.logits is None:
            return None
        logits, stored = self.host.model(replay.inputs)[:, : replay.logits.shape[1]], replay.logits
        later = stored.isnan()  # columns of classes that came after the answer
        moved = logits.masked_fill(later, -math.inf).softmax(dim=1) - stored.masked_fill(later, -math.inf).softmax(
            dim=1
        )
        distance: Tensor = torch.linalg.vector_norm(moved, dim=1).mean()
        return self.alpha * distance
