"""Accuracy in the two scenarios: Class-IL (no task identity at test) and Task-IL (logits of other tasks masked)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sparcl.errors import TrainingError
from sparcl.learner.refusals import check_columns
from sparcl.scenarios import told_first
from sparcl.streams.task import Task

AT_ONCE = 64
"""Samples that are asked at a time."""

MOST_CONFUSED = 256
"""Classes for which a confusion matrix is kept: it grows with their square."""

Confusion = tuple[tuple[int, ...], ...]
"""Row i, column j: test samples of class i that were taken for class j."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on each of several tasks, percent; `class_il` is None for a method that needs the task identity,
    `task_il` where a class is in two of the tasks.

    `confusion` is over all of these tasks, in Class-IL (in Task-IL for a method that needs the task identity);
    None above 256 classes.
    """

    class_il: tuple[float, ...] | None
    task_il: tuple[float, ...] | None
    confusion: Confusion | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.told("class-il")

    def told(self, scenario: str) -> str:
        """In words, that of the scenario first."""
        known = {name: v for key, name in told_first(scenario).items() if (v := getattr(self, key)) is not None}
        told = [f"{name} {sum(v) / len(v):.2f} %" for name, v in known.items()]
        tasks = next((len(v) for v in known.values()), 0)
        return f"{', '.join(told)} (mean of {tasks} tasks)"


class Answers(Protocol):
    """What is measured: a method, or one behind a front."""

    scenarios: tuple[str, ...]

    def predict(self, inputs: Tensor, task: Task) -> Tensor:
        """Logits [N, C] for normalised inputs."""


def measure(
    tasks: Sequence[Task],
    method: Answers,
    device: torch.device,
    before_batch: Callable[[], None],
    at_once: int = AT_ONCE,
) -> Accuracy:
    """Accuracy on the test samples of tasks, at least one, `at_once` at a time; the model is in eval mode.

    Raises:
        TrainingError: an answer is NaN, whose largest would be some class all the same.
    """
    found = [_accuracy_on(task, method, device, before_batch, at_once) for task in tasks]
    class_il, task_il, confusions = zip(*found, strict=True)
    confusion = tuple(map(tuple, sum(confusions).tolist())) or None
    columns = [k for task in tasks for k in task.classes]  # a class of two tasks leaves Task-IL without a meaning
    own = task_il if len(set(columns)) == len(columns) else None
    return Accuracy(class_il if "class-il" in method.scenarios else None, own, confusion)


def _accuracy_on(
    task: Task, method: Answers, device: torch.device, before_batch: Callable[[], None], at_once: int
) -> tuple[float, float, Tensor]:
    """Class-IL and Task-IL accuracy, percent, on a task's test samples; the model is in eval mode.

    Class-IL: the largest of all logits. Task-IL: the largest of the task's own. The third is how often each class
    (row) was taken for each (column) in the scenario of `Accuracy.confusion`: int64 [C, C], or [0, 0] above 256
    classes.
    """
    assert task.test is not None
    own = torch.tensor(task.classes, device=device)
    right_class = right_task = 0
    pairs: list[Tensor] = []
    classes = 0
    for start in range(0, len(task.test), at_once):
        before_batch()
        inputs = task.transform.test(task.test.inputs[start : start + at_once].to(device))
        labels = task.test.labels[start : start + at_once].to(device)
        logits = method.predict(inputs, task)
        check_columns(task, logits.shape[1])
        if bool(logits.isnan().any()):
            raise TrainingError(
                f"the model's answers to the test samples of task {task.index + 1} are NaN: its weights or statistics"
                " are too large or no numbers; lower the learning rate"
            )
        of_all, of_own = logits.argmax(1), own[logits[:, own].argmax(1)]
        right_class += int((of_all == labels).sum())
        right_task += int((of_own == labels).sum())
        classes = logits.shape[1] if logits.shape[1] <= MOST_CONFUSED else 0
        pairs.append(labels * classes + (of_all if "class-il" in method.scenarios else of_own))
    counts = torch.bincount(torch.cat(pairs).cpu(), minlength=classes**2) if classes else torch.zeros(0).long()
    confusion = counts.view(classes, classes)
    return 100.0 * right_class / len(task.test), 100.0 * right_task / len(task.test), confusion
