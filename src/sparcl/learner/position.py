"""Where training stands inside a task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError
from sparcl.streams.batches import last, steps


@dataclass
class Position:
    """Where training stands inside a task: the next step is `step` of `epoch`, on `order[cursor:]`."""

    task: int
    epoch: int = 0
    step: int = 0
    cursor: int = 0
    order: Tensor | None = None  # int64, the epoch's samples; None before the epoch has begun
    batch: int = 0  # samples a step: the batch size, or all that is left of a small task
    planned_steps: int = 0
    done: int = 0  # steps of the task
    seconds: float = 0.0  # of training, in the task
    pace: list[int] = field(default_factory=list)  # after how many steps each part of a budget of seconds was spent
    replayed: bool = False  # whether the pace is that of an earlier run
    right: int = 0  # of this epoch's samples so far, predicted rightly among the task's classes
    accuracy: float = 0.0  # of the last whole epoch, so counted
    learned: bool = False  # whether an epoch was better than guessing (`ChanceWatch`)
    data: str | None = None  # fingerprint of the task's samples, once a checkpoint has asked for it
    budget: dict[str, float] | None = None  # that the task was begun with; None: an earlier version did not tell

    def plan(self, order: Tensor, batch_size: int, drop_last: bool) -> None:
        """The epoch goes through `order`, int64, `batch_size` samples a step, or all of it where it is less."""
        self.order = order
        self.planned_steps, self.batch, _ = steps(len(order), batch_size, drop_last)

    def upcoming(self, drop_last: bool) -> int:
        """Samples of the next step; 0 where the epoch has none left."""
        left = 0 if self.order is None else len(self.order) - self.cursor
        return last(left, self.batch, drop_last)

    def shorten(self, keep: Callable[[Tensor], Tensor], batch_size: int, drop_last: bool) -> None:
        """Samples have left the task: go through those of the rest that `keep` leaves."""
        if self.order is None:
            return
        self.order = torch.cat([self.order[: self.cursor], keep(self.order[self.cursor :])])
        if self.cursor == 0:  # a small task may now be less than the batch that the epoch began with
            self.plan(self.order, batch_size, drop_last)

    def state_dict(self) -> dict[str, Any]:
        """Of a checkpoint; what is not known is left out."""
        return {name: value for name, value in vars(self).items() if name != "budget" or value is not None}

    def place(self, steps_ago: int) -> str:
        """So many steps before the one at hand, for people."""
        return f"task {self.task + 1}, epoch {self.epoch + 1}, step {self.step + 1 - steps_ago}"

    def check(self, learned: int, epochs: int | None) -> None:
        """Refuse a loaded position that training could never have reached."""
        if self.task != learned:
            raise CheckpointError("the position in the checkpoint is not inside the next task")
        if self.data is not None and not (isinstance(self.data, str) and self.data.strip()):
            raise CheckpointError("the position in the checkpoint has no fingerprint of the data")
        checks.integer(self.epoch, "epoch", most=1 << 40 if epochs is None else epochs)
        if not isinstance(self.learned, bool) or not isinstance(self.accuracy, float):
            raise CheckpointError("the position in the checkpoint does not say what was learned")
        for name in ("step", "cursor", "planned_steps", "done", "right"):
            checks.integer(getattr(self, name), name)
        checks.integer(self.batch, "batch", 0 if self.order is None else 1)
        if not isinstance(self.seconds, float) or not 0 <= self.seconds < math.inf:
            raise CheckpointError("the position in the checkpoint has no seconds")
        if not isinstance(self.pace, list) or len(self.pace) > 1000:
            raise CheckpointError("the position in the checkpoint has no pace")
        for number in self.pace:
            checks.integer(number, "a step of the pace")
        if self.order is not None:
            checks.within(checks.tensor(self.order, "order", torch.int64, (None,)), "order", 0, 1 << 40)
            checks.integer(self.cursor, "cursor", most=len(self.order))


@dataclass
class StreamPosition:
    """Where training stands in a stream without borders: so many steps, on so many samples."""

    steps: int = 0
    samples: int = 0

    @property
    def done(self) -> int:
        """Its steps, as a task's are called."""
        return self.steps

    def place(self, steps_ago: int) -> str:
        """So many steps before the one at hand, for people."""
        return f"step {self.steps + 1 - steps_ago} of the stream"

    @classmethod
    def of(cls, state: Any, position: Position | None) -> Self:
        """From a checkpoint; refuse one that training, now at `position`, could never have reached."""
        if position is not None:
            raise CheckpointError("the checkpoint stands inside a task and in a stream without borders at once")
        checks.keys(state, ("steps", "samples"), "the stream's position")
        samples = checks.integer(state["samples"], "samples of the stream")
        return cls(checks.integer(state["steps"], "steps of the stream", most=samples), samples)
