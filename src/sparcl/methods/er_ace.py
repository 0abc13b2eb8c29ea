"""ER-ACE, asymmetric cross-entropy (Caccia et al., ICLR 2022, eq. 4): new samples do not push old classes away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.methods.method import Batch, RehearsalMethod


class ERACE(RehearsalMethod):
    """L(D_t), over the classes that are in the batch only, + L(M), over all classes; two forward passes."""

    name = "er-ace"
    grows = True
    borderless = True
    replays_alone = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        buffer_bytes: int | str | None = None,
        buffer_policy: str = "reservoir",
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(
            buffer_size,
            buffer_bytes=buffer_bytes,
            buffer_policy=buffer_policy,
            buffer_storage=buffer_storage,
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill(0, batch.labels, False)
        loss = F.cross_entropy(logits.masked_fill(absent, float("-inf")), batch.labels)
        if (remembered := self.replay_importance_loss()) is not None:
            loss = loss + remembered
        return loss, logits

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None:
            return None
        return F.cross_entropy(self.host.model(replay.inputs), replay.labels)
