"""One process a run directory: a lock that the operating system drops with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparcl.errors import CheckpointError

LOCK = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[list[Path]]:
    """Hold a run directory; yields the folders that had to be made for it, itself first (none: it was there).

    Raises:
        CheckpointError: another process holds it, or it cannot be made.
    """
    made: list[Path] = []
    try:
        absent = [folder for folder in directory.parents if not folder.exists()]
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = [directory, *absent] if _make(directory) else []
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        for folder in made:
            os.rmdir(folder)
        raise CheckpointError(f"run directory {directory} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(directory / LOCK)):
                raise FileNotFoundError("its holder removed the file, and another process made a new one")
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise CheckpointError(f"run directory {directory} is in use by another process ({holder})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield made
    finally:
        os.close(descriptor)  # which drops the lock


def _make(directory: Path) -> bool:
    try:
        os.mkdir(directory)
    except FileExistsError:
        return False
    return True
