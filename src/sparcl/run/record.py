"""What a run leaves behind: config.toml, events.jsonl, result.json and the final model, in one directory."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from sparcl.checkpoint import disk
from sparcl.errors import CheckpointError, one_line
from sparcl.run.lock import LOCK
from sparcl.run.trackers import Trackers

RECORDED = ("task.", "epoch.", "tdm.", "dgm.", "ddr.", "run.", "static.", "set.", "snip.", "rigl.", "learner.")
"""Events that go into events.jsonl, by the start of their names; those of every step do not, nor those inside an
evaluation, which a run stopped there begins anew: the run writes one `evaluate` at its end."""


class RunDirectory:
    """The files of one run.

    Raises:
        CheckpointError: the place is not a directory, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.events = path / "config.toml", path / "events.jsonl"
        self.result, self.model = path / "result.json", path / "model.safetensors"
        self.answers, self.readme = path / "answers.safetensors", path / "README.md"
        self.samples, self.page = path / "samples.json", path / "report.html"
        self.checkpoints = path / "checkpoint"
        try:
            is_file = path.exists() and not path.is_dir()
        except OSError as error:
            raise CheckpointError(f"run directory {path} cannot be used: {error.strerror}") from None
        if is_file:
            raise CheckpointError(f"run directory {path} is a file; name a directory with --out")

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())

    @property
    def finished(self) -> bool:
        return self.result.exists()

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run."""
        try:
            result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.result} is damaged ({one_line(error)}): remove it and --resume") from None
        return result


class EventLog:
    """events.jsonl: one JSON object a line, each with the position in training at which it happened.

    Args:
        path: the file.
        keep: bytes of it that belong to the checkpoint that the run goes on from; what was written after it goes,
            notes of earlier resumes excepted.
        elapsed: seconds that the run had taken by then.

    Attributes:
        kept: what the file held when it was opened, as far as it was kept.
        follower: told of every line that is written.
    """

    def __init__(self, path: Path, keep: int = 0, elapsed: float = 0.0) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        with open(self._descriptor, "rb", closefd=False) as file:
            content = file.read()
        kept = content[: content[:keep].rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(kept))
        resumes = [line for line in content[len(kept) :].splitlines(keepends=True) if _is_resume(line)]
        disk.write_all(self._descriptor, b"".join(resumes))
        self._started = time.monotonic() - elapsed
        self.position = {"task": 0, "epoch": 0, "step": 0}
        self.kept = kept
        self.follower: Trackers | None = None

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        """Observe: keep the position, write what is recorded."""
        if event == "task.begin":
            self.position = {"task": figures["task"], "epoch": 0, "step": 0}
        elif event == "epoch.begin":
            self.position |= {"epoch": figures["epoch"], "step": 0}
        elif event == "step.end":
            self.position["step"] = figures["step"]
        if event.startswith(RECORDED):
            self.write(event, figures)

    def write(self, event: str, figures: dict[str, Any]) -> None:
        """Append one line; it reaches the file system at once."""
        line = {"event": event, **self.position, **figures, "seconds": round(time.monotonic() - self._started, 3)}
        text = json.dumps(line, default=_plain) + "\n"
        disk.write_all(self._descriptor, text.encode())
        if self.follower is not None:
            self.follower(json.loads(text))

    def sync(self) -> int:
        """Make what was written safe; returns the length of the file, for the checkpoint."""
        os.fsync(self._descriptor)
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """No more lines; whoever follows is told."""
        os.close(self._descriptor)
        if self.follower is not None:
            self.follower.close()


def _is_resume(line: bytes) -> bool:
    return line.startswith(b'{"event": "run.resume"') and line.endswith(b"}\n")


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into a record")


def finite(value: Any) -> Any:
    """A record's value with NaN and infinity as None: what was not measured is null, never a guess."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> str:
    """JSON for people: indented, a list of plain values on one line."""
    text = json.dumps(finite(value), indent=2)
    inner = r"\[\s+((?:[^\[\]{}\"]|\"(?:[^\"\\]|\\.)*\")+?)\s+\]"
    return re.sub(inner, lambda found: "[" + re.sub(r",\n\s*", ", ", found[1]) + "]", text) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or leave the old one; what this returns from has reached the disk."""
    disk.replace_file(path, [text.encode()])
