"""One process a run directory: a lock that the operating system drops with the process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparcl import regular
from sparcl.checkpoint import disk
from sparcl.errors import CheckpointError

LOCK = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[list[Path]]:
    """Hold a run directory; yields the folders that had to be made for it, itself first (none: it was there).

    Raises:
        CheckpointError: another process holds it, or it cannot be made.
    """
    made: list[Path] = []
    new = not os.path.lexists(directory / LOCK)
    try:
        for folder in reversed([directory, *directory.parents]):
            if _make(folder):
                made.insert(0, folder)
        descriptor = regular.open_to_change(directory / LOCK)
    except OSError as error:
        _unmake(made)
        raise _unusable(directory, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.stat(directory / LOCK)):
                raise FileNotFoundError("its holder removed the file, and another process made a new one")
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise CheckpointError(f"run directory {directory} is in use by another process ({holder})") from None
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            for folder in made:
                disk.sync_folder(folder.parent)  # that there is a run at all must outlast a power cut, too
        except OSError as error:  # a full disk
            if new:
                os.unlink(directory / LOCK)
            _unmake(made)
            raise _unusable(directory, error) from None
        yield made
    finally:
        os.close(descriptor)  # which drops the lock


def _make(directory: Path) -> bool:
    if directory.is_dir():
        return False
    try:
        os.mkdir(directory)
    except FileExistsError:
        return False
    return True


def _unmake(made: list[Path]) -> None:
    with contextlib.suppress(OSError):  # another run may have moved in beside it
        for folder in made:
            os.rmdir(folder)


def _unusable(directory: Path, error: OSError) -> CheckpointError:
    of = "" if error.filename is None or Path(error.filename) == directory else f"{Path(error.filename).name}: "
    return CheckpointError(f"run directory {directory} cannot be used: {of}{error.strerror}")
