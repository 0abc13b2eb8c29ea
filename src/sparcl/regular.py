"""Files that others may have put there, opened as what they must be: regular, of bounded size, never waited for.

A named pipe would hang who reads it, a device never ends, and a link in a folder of ours leads out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path, *, ours: bool = False) -> BinaryIO:
    """A regular file, to be read.

    Args:
        path: where it is.
        ours: it is one that this package writes; then it is no link either.

    Raises:
        OSError: missing, unreadable, not a regular file, or a link where it is ours.
    """
    return open(_open(path, os.O_RDONLY | (os.O_NOFOLLOW if ours else 0)), "rb")


def read(path: Path, limit: int, *, ours: bool = False) -> bytes:
    """A regular file's content.

    Raises:
        OSError: as `open_regular`; or it has more than `limit` bytes.
    """
    with open_regular(path, ours=ours) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {limit} are allowed", str(path))
        return file.read(size)


def open_to_change(path: Path) -> int:
    """A descriptor of a file of ours, to be read and written in place; made if it is missing.

    Raises:
        OSError: it cannot be; or it is a link, also a hard one: what is behind it is not ours to change.
    """
    return _ours(path, os.O_RDWR)


def open_to_add(path: Path, *, anew: bool = False) -> BinaryIO:
    """A file of ours, to be added to at its end; made if it is missing.

    Args:
        path: where it is.
        anew: what it holds goes first.

    Raises:
        OSError: as `open_to_change`; or the disk is full.
    """
    descriptor = _ours(path, os.O_WRONLY | os.O_APPEND)
    if anew:
        os.ftruncate(descriptor, 0)
    return open(descriptor, "ab")


def open_new(path: Path) -> BinaryIO:
    """A new file of ours, to be written; what had the name, a link say, is gone, and nothing is written through it.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")


def is_odd(path: Path) -> bool:
    """Whether something is there, or behind a link there, that is no file and no folder: a pipe or a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def open_odd(path: Path) -> BinaryIO:
    """A pipe or a device, to be written to; one that nobody reads is never waited for.

    Raises:
        OSError: it cannot be written, or a named pipe has no reader.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads it", str(path)) from None
        raise
    os.set_blocking(descriptor, True)
    return open(descriptor, "wb")


def _ours(path: Path, flags: int) -> int:
    descriptor = _open(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it has a second name (a hard link): copy it instead", str(path))
    return descriptor


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, not a regular file", str(path)) from None
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, "it is not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor
