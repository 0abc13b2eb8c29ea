"""The metrics of continual learning, from the accuracies on every task after every task.

Legend: T tasks; R[i][j] accuracy (percent) on task j after learning task i; b[j] that of the untrained network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparcl.errors import ConfigError
from sparcl.learner.accuracy import Accuracy, Confusion
from sparcl.scenarios import NAMES

Matrix = list[list[float]]


class AccuracyMatrix:
    """Collects a row of accuracies after each task, over all T tasks, those to come included.

    Args:
        tasks: T.
        answers_unseen: whether the method answers for classes it has not seen (`Method.answers_unseen`); where it does
            not, what R holds of tasks to come is the share of some class, and forward transfer is None.
    """

    def __init__(self, tasks: int, *, answers_unseen: bool = True) -> None:
        self.tasks, self.answers_unseen = tasks, answers_unseen
        self._rows: list[Accuracy] = []
        self._baseline: Accuracy | None = None
        self._confusion: Confusion | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_baseline(self) -> bool:
        """Whether the untrained network has been evaluated."""
        return self._baseline is not None

    def set_baseline(self, accuracy: Accuracy) -> None:
        """The accuracies of the untrained network, b."""
        self._baseline = self._checked(accuracy)

    def add(self, accuracy: Accuracy) -> None:
        """The accuracies after one more task: the next row of R."""
        if len(self._rows) == self.tasks:
            raise ConfigError(f"the accuracy matrix has all its {self.tasks} rows")
        self._rows.append(self._checked(accuracy))
        self._confusion = accuracy.confusion

    def _checked(self, accuracy: Accuracy) -> Accuracy:
        if accuracy.task_il is None or len(accuracy.task_il) != self.tasks:
            given = 0 if accuracy.task_il is None else len(accuracy.task_il)
            raise ConfigError(f"an accuracy for each of {self.tasks} tasks is needed, {given} given")
        return accuracy

    def rows(self) -> dict[str, Any]:
        """R by scenario (`class_il`: None for a method that needs the task identity) and b, as JSON values."""
        baseline = None
        if self._baseline is not None:
            baseline = {scenario: _listed(getattr(self._baseline, scenario)) for scenario in NAMES}
        return {**{scenario: self._matrix(scenario) for scenario in NAMES}, "baseline": baseline}

    def _matrix(self, scenario: str) -> Matrix | None:
        rows = [getattr(row, scenario) for row in self._rows]
        return None if any(row is None for row in rows) else [list(row) for row in rows]

    def metrics(self) -> dict[str, Any]:
        """What result.json says of the accuracies so far, percent.

        Returns:
            `class_il` and `task_il`, means over all tasks after the last row; `forgetting`, `backward_transfer` and
            `forward_transfer` in Class-IL, or in Task-IL for a method that needs the task identity; `transfer`, the
            same three by scenario. What has no meaning (one row, Class-IL of a Task-IL method) is None.
        """
        transfer = {scenario: self._transfer(scenario) for scenario in NAMES}
        means = {}
        for scenario in NAMES:
            matrix = self._matrix(scenario)
            means[scenario] = mean(matrix[-1]) if matrix else None
        headline = "task_il" if means["class_il"] is None else "class_il"
        return {**means, **transfer[headline], "transfer": transfer}

    def _transfer(self, scenario: str) -> dict[str, float | None]:
        matrix = self._matrix(scenario)
        baseline = getattr(self._baseline, scenario, None)
        if matrix is None or self.tasks < 2 or len(matrix) < self.tasks:
            return dict.fromkeys(("forgetting", "backward_transfer", "forward_transfer"))
        before = baseline if self.answers_unseen else None
        return {
            "forgetting": forgetting(matrix),
            "backward_transfer": backward_transfer(matrix),
            "forward_transfer": None if before is None else forward_transfer(matrix, list(before)),
        }

    def per_class(self, names: Sequence[str]) -> dict[str, Any] | None:
        """How each class is recognized after the last row; None where there is no confusion matrix.

        Returns:
            `scenario` (`class_il`; `task_il` for a method that needs the task identity), and by class, in the order of
            the logits: its name, `accuracy` (percent; None without test samples), and a row of `confusion`.
        """
        if self._confusion is None:
            return None
        totals = [sum(row) for row in self._confusion]
        right = [100.0 * row[i] / total if (total := totals[i]) else None for i, row in enumerate(self._confusion)]
        scenario = "task_il" if self._matrix("class_il") is None else "class_il"
        confusion = _listed_rows(self._confusion)
        return {"scenario": scenario, "names": list(names), "accuracy": right, "confusion": confusion}

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.rows(), "confusion": _listed_rows(self._confusion)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        class_il, task_il, baseline = state["class_il"], state["task_il"], state["baseline"]
        classes = class_il if class_il is not None else [None] * len(task_il)
        self._rows = [_accuracy(c, t) for c, t in zip(classes, task_il, strict=True)]
        self._baseline = None if baseline is None else _accuracy(baseline["class_il"], baseline["task_il"])
        confusion = state["confusion"]
        self._confusion = None if confusion is None else tuple(tuple(map(int, row)) for row in confusion)


def forgetting(matrix: Matrix) -> float:
    """Mean over tasks j < T of max over i < T of R[i][j], less R[T][j] (Chaudhry et al., 2018, eq. 3)."""
    *before, last = matrix
    return mean([max(row[j] for row in before) - last[j] for j in range(len(last) - 1)])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over tasks j < T of R[T][j] - R[j][j] (Lopez-Paz and Ranzato, 2017, eq. 3)."""
    return mean([matrix[-1][j] - matrix[j][j] for j in range(len(matrix) - 1)])


def forward_transfer(matrix: Matrix, baseline: list[float]) -> float:
    """Mean over tasks j > 1 of R[j - 1][j] - b[j] (Lopez-Paz and Ranzato, 2017, eq. 4)."""
    return mean([matrix[j - 1][j] - baseline[j] for j in range(1, len(matrix))])


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _listed_rows(confusion: Confusion | None) -> list[list[int]] | None:
    return None if confusion is None else [list(row) for row in confusion]


def _accuracy(class_il: list[float] | None, task_il: list[float]) -> Accuracy:
    return Accuracy(None if class_il is None else tuple(class_il), tuple(task_il))
