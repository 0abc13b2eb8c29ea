"""Fine-tuning: no memory at all, the lower bound."""

from __future__ import annotations

from torch import Tensor

from sparcl.methods.method import Batch, Method


class Finetune(Method):
    """L(D_t) and nothing else."""

    name = "finetune"
    grows = True
    borderless = True

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        return self.cross_entropy(logits, batch), logits
