"""What a run leaves behind: config.toml, events.jsonl, result.json and the final model, in one directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparcl import regular
from sparcl.checkpoint import disk
from sparcl.errors import CheckpointError, one_line
from sparcl.outputs import FOLDERS_OF_RUN, OF_RUN
from sparcl.run.lock import LOCK
from sparcl.run.trackers import MAX_EVENTS, Trackers

RECORDED = ("task.", "epoch.", "tdm.", "dgm.", "ddr.", "run.", "static.", "set.", "snip.", "rigl.", "learner.")
"""Events that go into events.jsonl, by the start of their names; those of every step do not, nor those inside an
evaluation, which a run stopped there begins anew: the run writes one `evaluate` at its end."""

MAX_RESULT = 64 << 20
"""Bytes of result.json: a larger one is no run's."""


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
        self._check_names()
        self._lock: os.stat_result | None = None

    def _check_names(self) -> None:
        """Refuse what no run leaves behind: a link would lead out of the directory, a named pipe never answer."""
        for names, kind, fits in ((OF_RUN, "regular file", stat.S_ISREG), (FOLDERS_OF_RUN, "folder", stat.S_ISDIR)):
            for name in names:
                with contextlib.suppress(OSError):  # missing
                    if not fits(os.lstat(self.path / name).st_mode):
                        raise CheckpointError(f"{self.path / name} is not a {kind}, as a run leaves it: move it away")

    def seize(self) -> None:
        """Note that the directory is ours: it is locked."""
        self._lock = os.stat(self.path / LOCK)

    @property
    def ours(self) -> bool:
        """Whether the directory that was seized is still there."""
        try:
            return self._lock is not None and os.path.samestat(self._lock, os.stat(self.path / LOCK))
        except OSError:
            return False

    def check_ours(self) -> None:
        """Refuse to write into a directory that was removed under the run, or is another's by now.

        Raises:
            CheckpointError: it was.
        """
        if not self.ours:
            raise CheckpointError(f"run directory {self.path} was removed while the run went on: it ends here")

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())

    def check_free(self) -> None:
        """Refuse a folder of other files, which a run's own would lie among or replace.

        Raises:
            CheckpointError: it holds what no run makes, and nothing that a run has left there; or it cannot be read.
        """
        try:
            names = set(os.listdir(self.path)) if self.path.is_dir() else set()
        except OSError as error:
            raise CheckpointError(f"run directory {self.path} cannot be read: {error.strerror}") from None
        begun = {LOCK, self.events.name, self.result.name, self.checkpoints.name}
        own = {*OF_RUN, *FOLDERS_OF_RUN}
        others = sorted(name for name in names - own if not name.startswith("."))
        if others and not names & begun:
            raise CheckpointError(
                f"{self.path} holds other files, such as {others[0]}, and no run: choose another --out"
            )

    @property
    def finished(self) -> bool:
        return os.path.lexists(self.result)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run."""
        try:
            result: dict[str, Any] = json.loads(regular.read(self.result, MAX_RESULT, ours=True).decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.result} is damaged ({one_line(error)}): --resume writes it again") from None
        if not isinstance(result, dict):
            raise CheckpointError(f"{self.result} is damaged (it holds no JSON object): --resume writes it again")
        return result


@dataclass(frozen=True)
class Extent:
    """The length of events.jsonl in bytes and its SHA-256 (hex; None where an older checkpoint does not say)."""

    size: int
    sha256: str | None


class EventLog:
    """events.jsonl: one JSON object a line, each with the position in training at which it happened.

    Args:
        path: the file.
        keep: what of it belongs to the checkpoint that the run goes on from; what was written after it goes, notes of
            earlier resumes excepted.
        elapsed: seconds that the run had taken by then.

    Attributes:
        kept: what the file held when it was opened, as far as it was kept.
        changed: whether that is not what the checkpoint knew: shortened, or edited.
        follower: told of every line that is written.

    Raises:
        CheckpointError: the file is a link, not a regular file, or larger than any run's.
    """

    def __init__(self, path: Path, keep: Extent | None = None, elapsed: float = 0.0) -> None:
        self.path = path
        try:
            self._descriptor = regular.open_to_change(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be used: {error.strerror}") from None
        keep = keep or Extent(0, hashlib.sha256().hexdigest())
        try:
            content = self._content()
            kept = content[: content[: keep.size].rfind(b"\n") + 1]
            self._digest, self._size = hashlib.sha256(kept), len(kept)
            self.changed = len(kept) != keep.size or keep.sha256 not in (None, self._digest.hexdigest())
            os.ftruncate(self._descriptor, len(kept))
            os.lseek(self._descriptor, 0, os.SEEK_END)
            for line in content[len(kept) :].splitlines(keepends=True):
                if _is_resume(line):
                    self._append(line)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._started = time.monotonic() - elapsed
        self.position = {"task": 0, "epoch": 0, "step": 0}
        self.kept = kept
        self.follower: Trackers | None = None

    def _content(self) -> bytes:
        if (size := os.fstat(self._descriptor).st_size) > MAX_EVENTS:
            raise CheckpointError(f"{self.path} has {size} bytes; at most {MAX_EVENTS} are allowed")
        with open(self._descriptor, "rb", closefd=False) as file:
            return file.read(size)

    def _append(self, line: bytes) -> None:
        disk.write_all(self._descriptor, line)
        self._digest.update(line)
        self._size += len(line)

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
        self._append(text.encode())
        if self.follower is not None:
            self.follower(json.loads(text))

    def sync(self) -> Extent:
        """Make what was written safe; returns what the file holds, for the checkpoint.

        Raises:
            CheckpointError: the file was removed or shortened, or another put in its place.
        """
        os.fsync(self._descriptor)
        status = os.fstat(self._descriptor)
        there = os.path.lexists(self.path) and os.path.samestat(status, os.lstat(self.path))
        if not there or status.st_size != self._size:
            raise CheckpointError(f"{self.path} was removed or changed while the run went on: it ends here")
        return Extent(self._size, self._digest.hexdigest())

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
