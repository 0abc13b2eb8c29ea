"""A-GEM, averaged gradient episodic memory (Chaudhry et al., ICLR 2019): never step against the past."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.methods.balanced import TaskShares
from sparcl.methods.method import Batch


class AGEM(TaskShares):
    """L(D_t), its gradient g projected where it opposes g_ref, the gradient of L(M) (eq. 11):

    g̃ = g - min(gᵀg_ref, 0) / (g_refᵀg_ref) · g_ref. Under a sparsifier both gradients are those of the weights that
    may move, and where it scales g before the step, g_ref is scaled here instead: the step does not oppose the past.
    The memory is ours: filled at a task's end, equal random shares for all tasks, up to the buffer's size,
    and so it holds only past ones. (Mammoth, of the published figures, stores one batch of samples a task.)
    """

    name = "agem"
    grows = True
    replays_alone = True

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        return self.cross_entropy(logits, batch), logits

    def after_backward(self, batch: Batch) -> None:
        """Put g̃ in the place of g."""
        del batch
        if (reference := self.replay_importance_loss()) is None:
            return
        self.host.mask_gradients()
        parameters = list(self.host.model.parameters())
        g = [p.grad for p in parameters]
        self.host.model.zero_grad(set_to_none=True)
        self.host.read_replay(reference.backward)
        self.host.mask_gradients()
        self.host.scale_gradients()  # as g will be, before it moves a weight
        g_ref = [p.grad for p in parameters]
        for p, projected in zip(parameters, project(g, g_ref), strict=True):
            p.grad = projected

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None:
            return None
        return F.cross_entropy(self.host.model(replay.inputs), replay.labels)


def project(g: Sequence[Tensor | None], g_ref: Sequence[Tensor | None]) -> list[Tensor | None]:
    """g where gᵀg_ref >= 0, else its projection to gᵀg_ref = 0 (A-GEM, eq. 11), both over all tensors together.

    None is a parameter that a loss did not reach: a gradient of zero, which moves nothing unless g_ref is taken away.
    """
    both = [(a, b) for a, b in zip(g, g_ref, strict=True) if a is not None and b is not None]
    if not both:
        return list(g)
    dot = torch.stack([(a * b).sum() for a, b in both]).sum()
    norm = torch.stack([(b * b).sum() for b in g_ref if b is not None]).sum()
    scale = dot.clamp(max=0.0) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    opposes = any(a is None and b is not None for a, b in zip(g, g_ref, strict=True)) and bool(scale < 0)

    def projected(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return -scale * b if b is not None and opposes else a
        return a - scale * b

    return [projected(a, b) for a, b in zip(g, g_ref, strict=True)]
