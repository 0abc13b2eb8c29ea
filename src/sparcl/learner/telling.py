"""What a Learner tells its observers, and what of that takes nothing from a budget of seconds."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparcl.checkpoint import Checkpointer, Store
from sparcl.learner.position import Position

Observer = Callable[[str, dict[str, Any]], None]
"""Told of all that happens: an event's name and its figures. Observers look on and change nothing."""

SAFE = ("task.begin", "epoch.begin", "step.end", "epoch.end", "task.end")
"""Events between two steps: where an observer may save."""


def tell_all(observers: Sequence[Observer], event: str, figures: dict[str, Any]) -> None:
    """Pass an event on to each."""
    for observer in observers:
        observer(event, figures)


class Telling(ABC):
    """Observers, and last of them the one that saves."""

    observers: list[Observer]
    position: Position | None
    _checkpointer: Checkpointer | None
    _mark: float
    """Until when time is counted."""

    def tell(self, event: str, figures: dict[str, Any]) -> None:
        """Pass an event on to the observers."""
        for observer in self.observers:
            with self._not_counted(isinstance(observer, Checkpointer)):
                observer(event, figures)
        if self._checkpointer is not None:
            with self._not_counted(True):
                self._checkpointer(event, figures)  # last: what the others count is in the state

    @contextlib.contextmanager
    def _not_counted(self, applies: bool) -> Iterator[None]:
        """What is done in here, if it applies, takes nothing from a budget of seconds: checkpoints and evaluation."""
        started = time.perf_counter() if applies and self.position is not None else None
        try:
            yield
        finally:
            if started is not None:
                self._mark += time.perf_counter() - started

    @abstractmethod
    def _save_to(self, store: Store) -> Path:
        """Write a checkpoint."""
