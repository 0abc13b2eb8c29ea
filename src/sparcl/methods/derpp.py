"""DER++ (Buzzega et al., 2020, eq. 6): DER, and the remembered labels on a second buffer batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparcl.methods.der import DER
from sparcl.methods.method import Batch, check_not_negative


class DERpp(DER):
    """L(D_t) + α·MSE(logits, stored logits) on one buffer batch + β·L(another buffer batch).

    Args:
        buffer_size: samples kept.
        alpha: α, weight of the stored logits.
        beta: β, weight of the stored labels.
        single_head: see Method.
        buffer_bytes, buffer_policy, buffer_storage: see RehearsalMethod.
    """

    name = "derpp"
    borderless = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        alpha: float = 0.1,
        beta: float = 0.5,
        single_head: bool = False,
        buffer_bytes: int | str | None = None,
        buffer_policy: str = "reservoir",
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(
            buffer_size,
            alpha=alpha,
            single_head=single_head,
            buffer_bytes=buffer_bytes,
            buffer_policy=buffer_policy,
            buffer_storage=buffer_storage,
        )
        check_not_negative(self.name, beta=beta)
        self.beta = beta

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        if (labelled := self.replay_cross_entropy()) is not None:
            loss = loss + self.beta * labelled
        return loss, logits

    def replay_cross_entropy(self) -> Tensor | None:
        """Cross-entropy on a buffer batch."""
        if (replay := self.replay()) is None:
            return None
        return F.cross_entropy(self.host.model(replay.inputs), replay.labels)

    def replay_importance_loss(self) -> Tensor | None:
        distance, labelled = super().replay_importance_loss(), self.replay_cross_entropy()
        return None if distance is None or labelled is None else distance + self.beta * labelled
