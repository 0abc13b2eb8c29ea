"""Seconds by phase, as an observer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PHASES = ("train", "evaluate", "importance")


class Clock:
    """An observer of a Learner that adds up wall-clock seconds.

    `train` runs from a task's beginning to its end, without evaluations and what is `paused`; `importance`, a part of
    it, from a ranking's beginning to the event after its last pass, so it holds the backward passes, the ranking and
    what it moves too, or to a pause, where the step goes on; `evaluate` is all evaluation; `total` is the clock's whole
    life, resumed runs added.

    Args:
        now: where the time comes from, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._spent = dict.fromkeys((*PHASES, "total"), 0.0)
        self._running: dict[str, float] = {"total": now()}
        self._in_task = False

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Observe an event of the Learner."""
        del figures
        if event == "importance.pause" or not event.startswith("importance."):
            self._stop("importance")
        match event:
            case "task.begin":
                self._in_task = True
                self._start("train")
            case "task.end":
                self._in_task = False
                self._stop("train")
            case "importance.begin":
                self._start("importance")
            case "evaluate.begin":
                self._stop("train")
                self._start("evaluate")
            case "evaluate.end":
                self._stop("evaluate")
                if self._in_task:
                    self._start("train")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in here, such as a checkpoint, is no training: as in a budget of seconds."""
        trains = "train" in self._running
        self._stop("train")
        try:
            yield
        finally:
            if trains:
                self._start("train")

    def _start(self, phase: str) -> None:
        self._running.setdefault(phase, self._now())

    def _stop(self, phase: str) -> None:
        if phase in self._running:
            self._spent[phase] += self._now() - self._running.pop(phase)

    def seconds(self) -> dict[str, float]:
        """Seconds so far: `train`, `evaluate`, `importance` and `total`."""
        now = self._now()
        return {phase: spent + now - self._running.get(phase, now) for phase, spent in self._spent.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as JSON values."""
        return {"seconds": self.seconds(), "in_task": self._in_task}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: time runs from now on, inside the task if the state stands inside one."""
        self._spent = {phase: float(state["seconds"][phase]) for phase in self._spent}
        self._in_task = bool(state["in_task"])
        self._running = {"total": self._now()}
        if self._in_task:
            self._start("train")
