"""A memory of equal shares: every task (or class) owns as many samples as every other; methods that fill it by task.

Legend: B capacity, n filled, N samples that arrive, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.methods.buffer import ReservoirBuffer, widened
from sparcl.methods.method import Batch, RehearsalMethod
from sparcl.methods.respond import logits_of
from sparcl.methods.storage import Held, joined
from sparcl.streams.task import Task


class BalancedBuffer(ReservoirBuffer):
    """Filled once a task; each group keeps its first B // (number of groups) samples, so the order is a ranking."""

    FIELDS: ClassVar[tuple[str, ...]] = (*ReservoirBuffer.FIELDS, "groups")

    def __init__(self, capacity: int | None, **kept: Any) -> None:
        super().__init__(capacity, **kept)
        self.groups: Tensor | None = None

    def share(self, groups: int) -> int:
        """Samples that each of so many groups may keep.

        Raises:
            ConfigError: there are more groups than places.
        """
        if groups > self.capacity:
            raise ConfigError(
                f"buffer size {self.capacity} cannot hold one sample of {groups} tasks or classes each;"
                f" use {groups} or more"
            )
        return self.capacity // groups

    def admit(self, inputs: Tensor, labels: Tensor, logits: Tensor | None, groups: Tensor) -> None:
        """Take in new groups, the samples of each in order of importance, and cut the old ones to make room.

        Args:
            inputs: [N, ...] as stored; labels: int64 [N]; logits: [N, C] or None; groups: int64 [N].
        """
        filled = len(self)
        arrived: dict[str, Held | None] = {"inputs": self.storage.stored(inputs), "labels": labels}
        arrived |= {"logits": logits, "groups": groups}
        both = {
            name: new if getattr(self, name) is None else joined(widened(getattr(self, name)[:filled], new), new)
            for name, new in arrived.items()
            if new is not None
        }
        all_groups = both["groups"]
        assert isinstance(all_groups, Tensor)
        of_group = [(all_groups == g).nonzero().squeeze(1) for g in torch.unique(all_groups)]
        kept = torch.cat([places[: self.share(len(of_group))] for places in of_group])
        self.seen = len(kept)
        for name, held in both.items():
            setattr(self, name, self._with_room(held[kept]))


class TaskShares(RehearsalMethod):
    """A rehearsal method whose memory is filled at a task's end, equal random shares for all tasks.

    Args:
        buffer_size, buffer_bytes, buffer_storage, single_head: see RehearsalMethod.
    """

    fills_by_task = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        single_head: bool = False,
        buffer_bytes: int | str | None = None,
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(buffer_size, single_head=single_head, buffer_bytes=buffer_bytes, buffer_storage=buffer_storage)
        self.buffer: BalancedBuffer = BalancedBuffer(**self.kept_as)

    def check_stream(self, tasks: int, classes: int) -> None:
        del classes
        self.buffer.share(tasks)

    def begin_task(self, task: Task) -> None:
        self.buffer.share(task.index + 1)  # refuses a buffer that is too small before any work

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Nothing: the memory is filled at the task's end."""

    def end_task(self, task: Task) -> None:
        device = self.host.device
        drawn = torch.randperm(len(task.train), generator=self.host.generator)[: self.buffer.share(task.index + 1)]
        inputs, labels = task.train.inputs[drawn].to(device), task.train.labels[drawn].to(device)
        logits = logits_of(self.host.model, inputs, task, device) if self.stores_logits else None
        self.buffer.admit(inputs, labels, logits, torch.full_like(labels, task.index))
