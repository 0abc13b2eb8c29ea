"""What a run shows while it works, and the table at its end."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparcl.learner import Learner
from sparcl.scenarios import told_first

LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal to update in place."""


def updates_in_place(console: Console) -> bool:
    """Whether a line can be rewritten: in a terminal that moves its cursor, and not in a notebook's output."""
    in_notebook = console.is_jupyter or "JPY_PARENT_PID" in os.environ
    return console.is_terminal and not console.is_dumb_terminal and not in_notebook


def spell_out() -> None:
    """From now on an output that has no letter for a sign gets it in plain ones: +- for ±, \\u754c for 界."""
    codecs.register_error("sparcl.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sparcl.plain")


PLAIN = {"–": "-", "±": "+-", "×": "x", "…": "...", "≤": "<=", "≥": ">=", "·": "*", "→": "->", "’": "'"}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters), error.end


class Progress:
    """An observer that says where training is: task, epoch, accuracy so far, time left.

    Args:
        console: where it is said.
        samples: training samples of each task: epochs take as long as they have samples, other budgets alike.
        learner: whose budget and position are told.
    """

    def __init__(self, console: Console, samples: Sequence[int], learner: Learner) -> None:
        self.console, self.tasks, self.learner = console, len(samples), learner
        self._shares = samples if learner.budget.kind == "epochs" else [1] * len(samples)
        self.accuracy = "–"
        self._live: Live | None = None
        self._task = 0
        self._resumed_at = 0.0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if updates_in_place(self.console):
            self._live = Live(Text(""), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def resume_at(self, done: float) -> None:
        """Training goes on after so many tasks: what was done before does not count for the time left."""
        self._resumed_at = self._share(done)
        self._started = time.monotonic()

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        if event == "epoch.begin":
            self._task = figures["task"]
        elif event == "step.end":
            self._show(figures)
        elif event == "latents.batch":
            self._show_latents(figures)
        elif event == "learner.chance":
            self.console.print(not_learned(figures), highlight=False, soft_wrap=True)

    def _where(self, figures: dict[str, Any]) -> str:
        """How far the budget is spent; of epochs also the step within one."""
        budget, position = self.learner.budget, self.learner.position
        told = "" if position is None else budget.describe(position)
        return f"{told}  step {figures['step']}/{figures['steps']}" if budget.kind == "epochs" else told

    def _show_latents(self, figures: dict[str, Any]) -> None:
        if self._due():
            done = f"{figures['done']:,} of {figures['of']:,} samples"
            self._tell(f"task {figures['task'] + 1}/{self.tasks}  the frozen part answers: {done}")

    def _due(self) -> bool:
        """Whether it is time for another line."""
        now = time.monotonic()
        if now - self._last < (0.25 if self._live else LINE_INTERVAL):
            return False
        self._last = now
        return True

    def _show(self, figures: dict[str, Any]) -> None:
        if not self._due():
            return
        now = self._last
        done = self._share(self._task + figures["spent"])
        speed = (done - self._resumed_at) / (now - self._started)
        left = duration((1 - done) / speed) if speed > 0 else "?"
        line = (
            f"task {self._task + 1}/{self.tasks}  {self._where(figures)}  loss {float(figures['loss']):.3f}"
            f"  accuracy so far {self.accuracy}  time left {left}"
        )
        self._tell(line)

    def _share(self, tasks: float) -> float:
        """Of all training, what so many tasks and a part of the next take."""
        whole = int(tasks)
        under_way = (tasks - whole) * sum(self._shares[whole : whole + 1])
        return (sum(self._shares[:whole]) + under_way) / sum(self._shares)

    def _tell(self, line: str) -> None:
        if self._live is not None:
            self._live.update(Text(line))
        else:
            self.console.print(line, highlight=False, soft_wrap=True)


class Measuring:
    """An observer that says why a run does not begin yet: `auto` times the layers, the first time on a machine."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = -LINE_INTERVAL

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        if event == "auto.measure" and figures["seconds"] - self._last >= LINE_INTERVAL:
            self._last = figures["seconds"]
            line = (
                f"timing layers, native against dense: {figures['done']} of {figures['of']} done (kept for next time)"
            )
            self.console.print(line, highlight=False, soft_wrap=True)


def not_learned(figures: dict[str, Any]) -> str:
    """What `learner.chance` says, for people."""
    return (
        f"task {figures['task'] + 1} was not learned: in its last epoch {figures['accuracy']:.0%} of its samples were"
        f" right, guessing gives {figures['chance']:.0%}; try more epochs, another learning rate or less sparsity"
    )


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def summary(result: dict[str, Any], scenario: str | None) -> Table:
    """What a run came to, from its result; of the two scenarios the run's first, and its forgetting and transfer."""
    names = told_first(scenario)
    first = next(iter(names))
    moved = result["transfer"][first]
    flops, sparsity, memory = result["flops"], result["sparsity"], result["memory"]
    share = f" ({flops['executed'] / flops['dense']:.1%} of dense)" if flops["dense"] else ""
    peak = memory["peak_rss_bytes"]
    table = Table(title=f"{result['benchmark']}: {result['method']}, {result['sparsifier']}", show_header=False)
    table.add_row(" / ".join(names.values()), " / ".join(_percent(result[key]) for key in names))
    table.add_row(f"forgetting ({names[first]})", _percent(moved["forgetting"]))
    table.add_row(
        f"backward / forward transfer ({names[first]})",
        " / ".join(_percent(moved[f"{d}_transfer"]) for d in ("backward", "forward")),
    )
    table.add_row("sparsity of weights / gradients", f"{sparsity['weights']:.3f} / {sparsity['gradients']:.3f}")
    table.add_row("samples trained on / removed", f"{result['samples']['seen']:,} / {result['samples']['removed']:,}")
    table.add_row("training FLOPs executed", f"{flops['executed']:.3g}{share}")
    table.add_row("training FLOPs, paper convention", f"{flops['paper']:.3g}")
    table.add_row("seconds training / in all", f"{result['seconds']['train']:.1f} / {result['seconds']['total']:.1f}")
    table.add_row("peak memory", "–" if peak is None else f"{peak / 2**20:.0f} MiB")
    return table
