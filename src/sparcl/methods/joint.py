"""Joint training: all tasks at once, the upper bound."""

from __future__ import annotations

from sparcl.errors import ConfigError
from sparcl.methods.finetune import Finetune
from sparcl.streams.task import Task


class Joint(Finetune):
    """Fine-tuning on one task that holds all: give it `stream.merged()`; it is evaluated on the tasks apart."""

    name = "joint"
    grows = False
    learns_all_at_once = True

    def begin_task(self, task: Task) -> None:
        if task.index > 0:
            raise ConfigError("joint learns all tasks at once: give it stream.merged(), which has one task")
