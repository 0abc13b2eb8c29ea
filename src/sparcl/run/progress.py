"""What a run shows while it works, and the table at its end."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal to update in place."""


class Progress:
    """An observer that says where training is: task, epoch, accuracy so far, time left."""

    def __init__(self, console: Console, tasks: int, epochs: int) -> None:
        self.console, self.tasks, self.epochs = console, tasks, epochs
        self.accuracy = "–"
        self._live: Live | None = None
        self._task = self._epoch = 0
        self._resumed_at = 0.0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(Text(""), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def resume_at(self, task: int, epoch: int) -> None:
        """Training goes on from here: what was done before does not count for the time left."""
        self._resumed_at = task + epoch / self.epochs
        self._started = time.monotonic()

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        if event == "epoch.begin":
            self._task, self._epoch = figures["task"], figures["epoch"]
        elif event == "step.end":
            self._show(figures)

    def _show(self, figures: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last < (0.25 if self._live else LINE_INTERVAL):
            return
        self._last = now
        within = (self._epoch + figures["step"] / max(figures["steps"], 1)) / self.epochs
        done = self._task + within
        speed = (done - self._resumed_at) / (now - self._started)
        left = duration((self.tasks - done) / speed) if speed > 0 else "?"
        line = (
            f"task {self._task + 1}/{self.tasks}  epoch {self._epoch + 1}/{self.epochs}"
            f"  step {figures['step']}/{figures['steps']}  loss {float(figures['loss']):.3f}"
            f"  accuracy so far {self.accuracy}  time left {left}"
        )
        if self._live is not None:
            self._live.update(Text(line))
        else:
            self.console.print(line, highlight=False)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _flops(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def summary(results: list[dict[str, Any]]) -> Table:
    """Runs side by side, a row each, from their results."""
    table = Table(title=results[0]["benchmark"] if results else None)
    for heading in ("method", "sparsifier", "sparsity", "Class-IL %", "Task-IL %", "forgetting"):
        table.add_column(heading, justify="left" if heading in ("method", "sparsifier") else "right")
    for heading in ("FLOPs executed", "of dense", "FLOPs paper", "train s"):
        table.add_column(heading, justify="right")
    for r in results:
        executed, dense = r["flops"]["executed"], r["flops"]["dense"]
        table.add_row(
            r["method"],
            r["sparsifier"],
            f"{r['sparsity']['weights']:.2f}",
            _percent(r["class_il"]),
            _percent(r["task_il"]),
            _percent(r["forgetting"]),
            _flops(executed),
            f"{executed / dense:.1%}" if dense else "–",
            _flops(r["flops"]["paper"]),
            f"{r['seconds']['train']:.1f}",
        )
    return table
