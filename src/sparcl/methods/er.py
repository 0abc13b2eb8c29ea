"""ER, experience replay (Chaudhry et al., 2019; as in Mammoth): one loss over new and remembered samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.methods.method import Batch, RehearsalMethod, only


class ER(RehearsalMethod):
    """L(D_t ∪ M): the task's batch and the replay batch concatenated, one forward, one mean cross-entropy.

    A buffer of one sample is trained on, beside the task's batch; passes of its own for ranking (ranking `fresh`) leave
    it out (`Asked.replay`).
    """

    name = "er"
    grows = True
    borderless = True
    joins_replay = True

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        replay = self.replay()
        if replay is None:
            logits = self.host.model(batch.inputs)
            return self.cross_entropy(logits, batch), logits
        both = self.host.model(torch.cat([batch.inputs, replay.inputs]))
        logits, remembered = both.split([len(batch.labels), len(replay.labels)])
        task = only(logits, batch.task.classes) if self.single_head else logits
        labels = torch.cat([batch.labels, replay.labels])
        return F.cross_entropy(torch.cat([task, remembered]), labels), logits

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None:
            return None
        return F.cross_entropy(self.host.model(replay.inputs), replay.labels)
