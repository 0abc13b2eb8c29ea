"""DER, dark experience replay (Buzzega et al., 2020, eq. 5): remember what was answered."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparcl.methods.method import Batch, RehearsalMethod, check_not_negative


class DER(RehearsalMethod):
    """L(D_t) + α·MSE(logits, stored logits) on a buffer batch; the logits are those of the moment of insertion.

    Args:
        buffer_size: samples kept.
        alpha: α, weight of the stored logits.
        single_head: see Method.
        buffer_bytes, buffer_policy, buffer_storage: see RehearsalMethod.
    """

    name = "der"
    grows = True
    borderless = True
    stores_logits = True
    replays_alone = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        alpha: float = 0.3,
        single_head: bool = False,
        buffer_bytes: int | str | None = None,
        buffer_policy: str = "reservoir",
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(
            buffer_size,
            single_head=single_head,
            buffer_bytes=buffer_bytes,
            buffer_policy=buffer_policy,
            buffer_storage=buffer_storage,
        )
        check_not_negative(self.name, alpha=alpha)
        self.alpha = alpha

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        loss = self.cross_entropy(logits, batch)
        if (distance := self.logit_distance()) is not None:
            loss = loss + self.alpha * distance
        return loss, logits

    def logit_distance(self) -> Tensor | None:
        """MSE, over all logits, between present and stored answers on a buffer batch."""
        if (replay := self.replay()) is None or replay.logits is None:
            return None
        return squared_distance(self.host.model(replay.inputs), replay.logits)

    def replay_importance_loss(self) -> Tensor | None:
        distance = self.logit_distance()
        return None if distance is None else self.alpha * distance


def squared_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """MSE over the columns that the stored logits [N, C'] had: those of later classes are missing, or NaN."""
    missing = stored.isnan()
    if logits.shape == stored.shape and not bool(missing.any()):
        return F.mse_loss(logits, stored)
    known = ~missing
    return F.mse_loss(logits[:, : stored.shape[1]][known], stored[known])
