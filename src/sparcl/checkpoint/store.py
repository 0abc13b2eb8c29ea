"""A folder of checkpoints: `step-N/` and the small file `latest`, which names the newest whole one.

A save writes `.step-N.tmp/`, syncs it, renames it, syncs the folder, and only then replaces `latest`. At every moment
`latest` names a whole checkpoint, and the one before it is kept: should the newest be damaged later, it is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from sparcl.checkpoint import disk, files, model_file
from sparcl.checkpoint.tree import State
from sparcl.errors import CheckpointError, DataWarning

LATEST = "latest"
_NAME = re.compile(r"step-(\d{1,18})(?:\.(\d{1,9}))?")
"""`step-N`, N the training steps done; `step-N.k` where a task ended without a further step since `step-N`."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as it was found.

    Attributes:
        name: its folder, `step-N`.
        state: what it holds.
        damaged: why newer checkpoints were passed over, a line each.
    """

    name: str
    state: State
    damaged: tuple[str, ...] = ()


class Store:
    """The checkpoints in one folder.

    Args:
        folder: made at the first save.
        good: one that was loaded from it and is known to be whole; default: what `latest` says.
    """

    def __init__(self, folder: Path, good: str | None = None) -> None:
        self.folder = folder
        self._good = good

    def save(self, step: int, state: State) -> Path:
        """Write a checkpoint and make it the latest; the one before it stays, older ones go.

        Raises:
            CheckpointError: it cannot be written (a full disk); the last one is as it was.
        """
        try:
            return self._save(step, state)
        except OSError as error:
            self._clean()
            kept = self._good or self._latest()
            stays = f"; the last one, {kept}, is whole" if kept else ""
            raise CheckpointError(
                f"a checkpoint cannot be written to {self.folder}: {error.strerror or error}{stays}"
            ) from error

    def _save(self, step: int, state: State) -> Path:
        if not self.folder.is_dir():
            os.makedirs(self.folder)
            disk.sync_folder(self.folder.parent)
        self._clean()
        previous = self._good or self._latest()
        name = _free_name(step, previous)
        temporary, final = self.folder / f".{name}.tmp", self.folder / name
        disk.remove_folder(final)  # left over from a save that was cut off; nothing names it
        os.mkdir(temporary)
        files.write(temporary, state)
        os.rename(temporary, final)
        disk.sync_folder(self.folder)
        disk.replace_file(self.folder / LATEST, [f"{name}\n".encode()])
        self._good = name
        for other in self._names():
            if other not in (name, previous):
                disk.remove_folder(self.folder / other)
        return final

    def load(self) -> Loaded | None:
        """The newest whole checkpoint; None where there is none at all.

        Raises:
            CheckpointError: there are some, but none can be used.
        """
        latest = self._latest()
        others = [name for name in self._names() if name != latest]
        damaged: list[str] = []
        for name in ([] if latest is None else [latest]) + others:
            try:
                if (self.folder / name).is_symlink():
                    raise CheckpointError(f"checkpoint {self.folder / name} is a link, not a folder")
                state = files.read(self.folder / name)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            self._good = name
            return Loaded(name, state, tuple(damaged))
        if damaged:
            raise CheckpointError(f"no checkpoint in {self.folder} can be used: {'; '.join(damaged)}")
        return None

    @property
    def empty(self) -> bool:
        """Whether there is no checkpoint, whole or damaged; where that cannot be seen, there may be."""
        try:
            return not any(_NAME.fullmatch(name) for name in os.listdir(self.folder))
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _latest(self) -> str | None:
        try:
            text = disk.read_file(self.folder / LATEST, 64).decode("ascii").strip()
        except (CheckpointError, UnicodeDecodeError):
            return None
        return text if _NAME.fullmatch(text) else None

    def _names(self) -> list[str]:
        """All checkpoints, the newest first."""
        try:
            found = [match for name in os.listdir(self.folder) if (match := _NAME.fullmatch(name))]
        except OSError:
            return []
        return [m[0] for m in sorted(found, key=lambda m: (int(m[1]), int(m[2] or 0)), reverse=True)]

    def _clean(self) -> None:
        """Remove what a cut-off save left behind."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                if name.startswith(".step-") and name.endswith(".tmp"):
                    disk.remove_folder(self.folder / name)


def _free_name(step: int, previous: str | None) -> str:
    """`step-N`, or `step-N.k` where the previous checkpoint has that name."""
    match = _NAME.fullmatch(previous or "")
    if match is None or int(match[1]) != step:
        return f"step-{step}"
    return f"step-{step}.{int(match[2] or 0) + 1}"


def open_folder(place: Path) -> State:
    """The state at `place`: a folder of checkpoints, one `step-N` of it, or a model file from a device.

    Raises:
        CheckpointError: there is no whole checkpoint.

    Warns:
        DataWarning: the newest is damaged, and one before it is taken.
    """
    if place.is_file():
        return model_file.read(place).state
    if (place / files.MANIFEST).exists():
        return files.read(place)
    loaded = Store(place).load()
    if loaded is None:
        of_run = place / "checkpoint"  # as `sparcl run` leaves it
        within = f"; {of_run} may" if of_run.is_dir() else ""
        raise CheckpointError(f"{place} holds no checkpoint (no step-N with a {files.MANIFEST}){within}")
    for line in loaded.damaged:
        warnings.warn(f"{line}; using {loaded.name}", DataWarning, stacklevel=2)
    return loaded.state
