"""What a run leaves behind: config.toml, events.jsonl, result.json and the final model, in one directory."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from sparcl.errors import CheckpointError

RECORDED = ("task.", "epoch.", "tdm.", "dgm.", "ddr.", "evaluate.", "run.", "static.", "set.", "snip.", "rigl.")
"""Events that go into events.jsonl, by the start of their names; those of every step do not."""


class RunDirectory:
    """The files of one run.

    Raises:
        CheckpointError: the place is not a directory, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.events = path / "config.toml", path / "events.jsonl"
        self.result, self.model = path / "result.json", path / "model.safetensors"
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"run directory {path} is a file; name a directory with --out")

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return self.path.is_dir() and any(self.path.iterdir())

    @property
    def finished(self) -> bool:
        return self.result.exists()


class EventLog:
    """events.jsonl: one JSON object a line, each with the position in training at which it happened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._started = time.monotonic()
        self.position = {"task": 0, "epoch": 0, "step": 0}

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        """Observe: keep the position, write what is recorded."""
        if event == "task.begin":
            self.position = {"task": figures["task"], "epoch": 0, "step": 0}
        elif event == "epoch.begin":
            self.position |= {"epoch": figures["epoch"], "step": 0}
        elif event == "step.end":
            self.position["step"] = figures["step"]
        if event.startswith(RECORDED) and event not in ("evaluate.begin", "evaluate.end"):
            self.write(event, figures)

    def write(self, event: str, figures: dict[str, Any]) -> None:
        """Append one line; it reaches the file system at once."""
        line = {"event": event, **self.position, **figures, "seconds": round(time.monotonic() - self._started, 3)}
        self._file.write(json.dumps(line, default=_plain) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: to a temporary name, synced, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
