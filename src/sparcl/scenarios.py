"""The two scenarios of continual learning, by the key that records use, and which of them is told first."""

from __future__ import annotations

NAMES = {"class_il": "Class-IL", "task_il": "Task-IL"}
"""Class-IL: no task identity at test; Task-IL: the task is told."""


def told_first(scenario: object) -> dict[str, str]:
    """Keys and names in the order in which they are told: that of a run's setting (`task-il`), then the other."""
    first = "task_il" if scenario == "task-il" else "class_il"
    return {first: NAMES[first], **NAMES}
