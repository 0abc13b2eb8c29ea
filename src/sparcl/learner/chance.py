"""A network that learns nothing must not do so in silence: who guesses is told after the task.

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparcl.learner.position import Position
from sparcl.streams.task import Task

CERTAINTY = 4.0
"""Standard errors above the share of the most frequent class that no guessing reaches, in any of a task's epochs."""


class ChanceWatch:
    """Looks at the training predictions of each epoch, among the task's own classes; an accelerator waits once for it.

    The best that a network can do without looking at its inputs is to name the most frequent class. One that in no
    epoch of a task was right more often than that share, by `CERTAINTY` standard errors, has learned nothing that
    shows. DDR does not hide it: in the first epoch nothing is removed yet, and learned samples leave only later.
    """

    def __init__(self) -> None:
        self._pending: list[Tensor] = []

    def begin_task(self, task: Task) -> None:
        """Take the task's classes, on a fresh or a resumed task."""
        self.classes = torch.tensor(task.classes)
        counts = torch.bincount(task.train.labels.cpu())
        self.most = float(counts.max()) / max(len(task.train), 1)
        self._pending = []

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        """The task's batch was predicted: logits [N, C], labels [N]."""
        classes = self.classes.to(labels.device, non_blocking=True)
        named = classes[logits.detach()[:, classes].argmax(dim=1)]
        self._pending.append((named == labels).sum())

    def settle(self, position: Position) -> None:
        """Count what was noted; what is counted is part of the position, so that a resumed task goes on with it."""
        if self._pending:
            position.right += int(torch.stack(self._pending).sum())
            self._pending = []

    def end_epoch(self, position: Position) -> None:
        """Judge the epoch, all of whose samples are counted."""
        self.settle(position)
        n = position.cursor
        if n:
            needed = self.most + CERTAINTY * math.sqrt(self.most * (1 - self.most) / n)
            if needed >= 1.0 or position.right > needed * n:  # too few samples to tell, or learned
                position.learned = True
            position.accuracy = position.right / n
        position.right = 0
