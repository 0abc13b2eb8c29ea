"""`sparcl watch`: what a run does, from another terminal, by the lines that it adds to events.jsonl."""

from __future__ import annotations

import fcntl
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from sparcl import regular
from sparcl.errors import ConfigError
from sparcl.report.events import index, number, parse, seen
from sparcl.run.lock import LOCK
from sparcl.run.trackers import EVENTS
from sparcl.scenarios import told_first

RESULT = "result.json"
AT_ONCE = 16 << 20
"""Bytes that are read at a time."""
INTERVAL = 0.5
"""Seconds between two looks at the file."""


def watch(run: Path, console: Console) -> None:
    """Print what happened in the run and what happens from now on, until it ends or nobody works on it any more.

    Raises:
        ConfigError: there is no run at `run`.
    """
    if not os.path.isdir(run):  # unlike Path's own, it raises nothing, whatever the name
        reason = "is not a run directory" if os.path.exists(run) else "does not exist"
        raise ConfigError(f"{run} {reason}; name the --out of a run")
    teller = Teller()
    for line in follow(run):
        for text in teller(line):
            console.print(text, highlight=False, soft_wrap=True)
        if line.get("event") == "run.end":
            return
    if os.path.lexists(run / RESULT):
        console.print(f"the run in {run} is finished, and its {EVENTS} was cut off before its end", highlight=False)
        return
    console.print(f"the run in {run} is not going on; its command with --resume goes on with it", highlight=False)


def follow(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's events.jsonl, those to come included; ends when no process holds the run directory.

    Raises:
        ConfigError: it holds no such file, and no run that could make one; or the file is no regular one.
    """
    path, offset, rest = run / EVENTS, 0, b""
    while True:
        going_on = held(run)  # asked first: what was written by then is read below
        content, offset, rest = _new(path, offset, rest)
        if content is None and not going_on:
            raise ConfigError(f"{run} holds no run (no {EVENTS})")
        *whole, rest = (rest + (content or b"")).split(b"\n")
        rest = rest if len(rest) <= AT_ONCE else b"?"  # no line of a run's is as long
        for text in whole:
            if (line := parse(text)) is not None:
                yield line
        if len(content or b"") == AT_ONCE:
            continue
        if not going_on:
            return
        time.sleep(INTERVAL)


def held(run: Path) -> bool:
    """Whether a process works on the run directory: it holds its lock, however it may end."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _new(path: Path, offset: int, rest: bytes) -> tuple[bytes | None, int, bytes]:
    """What was added since `offset`, the new offset, and the unfinished line before it; None without a file."""
    try:
        file = regular.open_regular(path, ours=True)
    except FileNotFoundError:
        return None, 0, b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size < offset:  # a resumed run took back what came after its checkpoint
            offset, rest = size, b""
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                rest = b"?"  # the middle of a line: not JSON, so it is skipped
        file.seek(offset)
        content = file.read(AT_ONCE)
    return content, offset + len(content), rest


class Teller:
    """Puts lines into words; people see tasks and epochs numbered from 1."""

    def __init__(self) -> None:
        self._tasks = ""
        self._scenarios = told_first(None)

    def __call__(self, line: dict[str, Any]) -> Iterator[str]:
        """What there is to say of a line: nothing of most."""
        event, task = line.get("event"), f"task {index(line, 'task') + 1}"
        if event == "run.begin":
            self._tasks = f"/{index(line, 'tasks')}" if index(line, "tasks") else ""
            self._scenarios = told_first(line.get("scenario"))
        task += self._tasks
        where = f"{task}  epoch {index(line, 'epoch') + 1}"
        if event == "task.begin":
            yield f"{task} begins: {index(line, 'samples')} samples"
        elif event in ("loss", "loss.epoch") and (loss := number(line.get("loss"))) is not None:
            yield f"{where}  {'step' if event == 'loss' else 'all'} {index(line, 'step')}  loss {loss:.4g}"
        elif event == "ddr.remove":
            yield f"{where}  {index(line, 'removed')} samples removed, {index(line, 'kept')} kept"
        elif event == "evaluate":
            yield f"{task} learned: {self._accuracy(line)}"
        elif event == "run.resume":
            yield f"resumed at step {index(line, 'step')}"
        elif event == "run.end":
            told = [(name, number(line.get(key))) for key, name in self._scenarios.items()]
            means = [f"{name} {value:.2f} %" for name, value in told if value is not None]
            yield "finished: " + (", ".join(means) or "no test samples")

    def _accuracy(self, line: dict[str, Any]) -> str:
        told = [(name, seen(line, key)) for key, name in self._scenarios.items()]
        means = [f"{name} {statistics.fmean(values):.2f} %" for name, values in told if values]
        return ", ".join(means) or "no accuracy told"
