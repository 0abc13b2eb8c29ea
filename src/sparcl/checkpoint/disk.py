"""Durable file operations: what they return from has reached the disk.

A file's bytes are safe after `fsync` of the file; that it exists under its name is safe after `fsync` of its folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparcl import outputs, regular
from sparcl.errors import CheckpointError

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Written:
    """Size and SHA-256 (hex) of a file."""

    size: int
    sha256: str


def write_all(descriptor: int, data: Bytes) -> None:
    """Write every byte; the system may take them in parts."""
    left = memoryview(data).cast("B")
    while left.nbytes:
        left = left[os.write(descriptor, left) :]


def write_file(path: Path, parts: Iterable[Bytes]) -> Written:
    """Write a file that does not exist yet and sync its bytes (its name is safe once its folder is synced)."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            write_all(descriptor, part)
            digest.update(part)
            size += memoryview(part).nbytes
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(size, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Make the names in a folder safe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, parts: Iterable[Bytes]) -> Written:
    """Put a whole new file in the place of an old one, or leave the old one as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a write that was cut off
    try:
        written = write_file(temporary, parts)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)
    return written


def write_output(path: Path, parts: Iterable[Bytes]) -> Written:
    """A whole new file under a name that the user chose: folders are made, a link stays a link.

    Raises:
        OSError: it cannot be written; or something lies there that is no file and would be lost, a device say.
        ConfigError: it is a run's own file.
    """
    outputs.check(path)
    place = Path(os.path.realpath(path))
    with contextlib.suppress(FileExistsError):  # a file in place of a folder: what follows says so more clearly
        place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(path) or regular.is_odd(path):
        what = "it is a folder" if os.path.isdir(path) else "it is not a regular file"
        raise OSError(errno.EINVAL, what, str(path))
    return replace_file(place, parts)


def remove_folder(path: Path) -> None:
    """Remove a flat folder and its files; one that resists (or holds folders) stays. Of a link, only the link goes."""
    with contextlib.suppress(OSError):
        if path.is_symlink():
            os.unlink(path)
            return
        for name in os.listdir(path):
            os.unlink(path / name)
        os.rmdir(path)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file of ours.

    Raises:
        CheckpointError: missing, unreadable, a link, not a regular file, or larger than `limit` bytes.
    """
    try:
        return regular.read(path, limit, ours=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
