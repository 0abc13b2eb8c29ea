"""FDR, function distance regularisation (Benjamin et al., ICLR 2019): stay close to what was answered, in L2."""

from __future__ import annotations

import torch
from torch import Tensor

from sparcl.methods.balanced import BalancedBuffer
from sparcl.methods.method import Batch, RehearsalMethod, check_not_negative
from sparcl.methods.respond import logits_of
from sparcl.streams.task import Task


class FDR(RehearsalMethod):
    """L(D_t) + α·mean ‖softmax(logits) - softmax(stored logits)‖₂ on a buffer batch.

    Answers are stored at a task's end, equal random shares for all tasks. One step on the sum, as in the paper; the
    Mammoth framework takes two steps and leaves α out.

    Args:
        buffer_size: samples kept.
        alpha: α, weight of the distance.
        single_head: see Method.
    """

    name = "fdr"
    stores_logits = True
    replays_alone = True

    def __init__(self, buffer_size: int = 200, *, alpha: float = 0.3, single_head: bool = False) -> None:
        super().__init__(buffer_size, single_head=single_head)
        self.buffer: BalancedBuffer = BalancedBuffer(buffer_size)
        check_not_negative(self.name, alpha=alpha)
        self.alpha = alpha

    def check_stream(self, tasks: int, classes: int) -> None:
        del classes
        self.buffer.share(tasks)

    def begin_task(self, task: Task) -> None:
        self.buffer.share(task.index + 1)  # refuses a buffer that is too small before any work

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        loss = self.cross_entropy(logits, batch)
        if (distance := self.replay_importance_loss()) is not None:
            loss = loss + distance
        return loss, logits

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None or replay.logits is None:
            return None
        moved = self.host.model(replay.inputs).softmax(dim=1) - replay.logits.softmax(dim=1)
        distance: Tensor = torch.linalg.vector_norm(moved, dim=1).mean()
        return self.alpha * distance

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Nothing: the memory is filled at the task's end."""

    def end_task(self, task: Task) -> None:
        device = self.host.device
        drawn = torch.randperm(len(task.train), generator=self.host.generator)[: self.buffer.share(task.index + 1)]
        inputs, labels = task.train.inputs[drawn].to(device), task.train.labels[drawn].to(device)
        logits = logits_of(self.host.model, inputs, task, device)
        self.buffer.admit(inputs, labels, logits, torch.full_like(labels, task.index))
