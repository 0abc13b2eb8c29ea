"""The files of a data set, from a folder, a tar or a zip, one at a time in memory; nothing is ever unpacked to disk.

Archives come from strangers: names that leave the archive, links and devices are refused, and what comes out is
bounded whatever the headers claim.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from sparcl import regular
from sparcl.errors import DataError, one_line

Progress = Callable[[int, int], None]

MAX_MEMBER_BYTES = 256 << 20  # the largest official file, CIFAR-100's training batch, has 155 MB
MAX_MEMBERS = 4_000_000
MAX_HEADER_BYTES = 1 << 18  # of a tar's extended header: a long name has a few kB
FREE_BYTES = 1 << 30  # that any archive may unpack to
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_PROGRESS_EVERY = 256  # files between two calls of a progress callback
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a zip's compression method
    RuntimeError,  # an encrypted zip
    ValueError,  # numbers or text in a header
)


class Readable(Protocol):
    """A stream of bytes, as files and decompressors are."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """One file or folder.

    Attributes:
        parts: of its path below the source.
        is_folder: folders are listed as well, since an empty one may be a class without images.
        read: the content; to be called before the next member is asked for.
    """

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]


def members(path: Path, tops: Sequence[str], progress: Progress | None = None) -> Iterator[Member]:
    """Every file and folder of a source, in its own order.

    Args:
        path: a folder, or an archive (tar, also with gzip, xz or bzip2; zip) recognised by its content.
        tops: of a folder, the files and folders to look into; an archive is read whole.
        progress: called with (done, total): files of a folder or a zip, compressed bytes of a tar.

    Raises:
        DataError: no such file, not an archive, damaged, hostile, or too large.
    """
    if path.is_dir():
        found = _folder_members(path, tops)
        total = sum(not m.is_folder for m in found)
        yield from _counted(iter(found), total, progress)
        return
    if not path.is_file():
        raise DataError(f"{path} does not exist: a folder or an archive is needed")
    with _one_line(path):
        if _begins(path).startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                files = sum(not info.filename.endswith("/") for info in archive.infolist())
                yield from _counted(_zip_members(path, archive), files, progress)
        else:
            yield from _tar_members(path, progress)


@contextlib.contextmanager
def _one_line(archive: Path) -> Iterator[None]:
    """Whatever the standard library raises on a damaged archive becomes one line."""
    try:
        yield
    except _DAMAGED as error:
        detail = one_line(error)
        allowed = ", ".join(ARCHIVE_SUFFIXES)
        raise DataError(f"{archive} is damaged, truncated or no archive ({detail}): allowed are {allowed}") from error


def read_bounded(file: Readable, limit: int, what: str) -> bytes:
    """All of `file`, never holding more than `limit` bytes (plus one block)."""
    blocks, size = [], 0
    while block := file.read(1 << 20):
        size += len(block)
        if size > limit:
            raise DataError(f"{what} is larger than the {limit} bytes that are allowed")
        blocks.append(block)
    return b"".join(blocks)


def is_junk(name: str) -> bool:
    """Files that systems leave behind: hidden ones, and macOS's copies of attributes."""
    return name.startswith((".", "__MACOSX"))


def _counted(found: Iterator[Member], total: int, progress: Progress | None) -> Iterator[Member]:
    done = 0
    for member in found:
        yield member
        done += not member.is_folder
        if progress is not None and not member.is_folder and (done % _PROGRESS_EVERY == 0 or done == total):
            progress(done, total)


def _folder_members(root: Path, tops: Sequence[str]) -> list[Member]:
    found: list[Member] = []
    for top in tops:
        start = root / top
        if start.is_file():
            found.append(_file_member(root, start))
        for folder, files in walked(start):
            found.append(Member(folder.relative_to(root).parts, True, bytes))
            found += [_file_member(root, folder / name) for name in files]
            if len(found) > MAX_MEMBERS:
                raise DataError(f"{root} holds more than {MAX_MEMBERS} files")
    return found


def walked(start: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `start` down with the names of its files, sorted; links to folders are followed, circles not.

    A file is no folder, and has none.

    Raises:
        DataError: a folder that cannot be listed: what it holds would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        if error.filename != str(start) or os.path.lexists(start):
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    if start.is_file():
        return
    for folder, subfolders, files in os.walk(start, followlinks=True, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not _is_circle(start, folder, name))
        yield Path(folder), sorted(files)


def _is_circle(start: Path, folder: str, name: str) -> bool:
    """Whether a subfolder is a link to a folder that it lies in, by its place or by the links on the way to it."""
    path = Path(folder, name)
    if not path.is_symlink():
        return False
    there = Path(os.path.realpath(path))
    above = (place for place in path.parents if place.is_relative_to(start))
    return any(Path(os.path.realpath(place)).is_relative_to(there) for place in above)


def _file_member(root: Path, file: Path) -> Member:
    def read() -> bytes:
        try:
            with regular.open_regular(file) as stream:
                return read_bounded(stream, MAX_MEMBER_BYTES, str(file))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error

    return Member(file.relative_to(root).parts, False, read)


def _safe_parts(source: Path, name: str, *, folder: bool) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if not name or (not path.parts and not folder):
        raise DataError(f"{source} holds a member without a name: refused")
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DataError(f"{source} holds the member {name!r}, whose path leaves the archive: refused")
    return path.parts


def _zip_members(source: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    infos = archive.infolist()
    _check_total(source, sum(info.file_size for info in infos))
    for info in infos:
        parts = _safe_parts(source, info.filename, folder=info.filename.endswith("/"))
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{source} holds {info.filename!r}, a link or a device: only files are allowed")

        def read(info: zipfile.ZipInfo = info) -> bytes:
            with _one_line(source), archive.open(info) as stream:
                return read_bounded(stream, MAX_MEMBER_BYTES, f"{source}: {info.filename}")

        yield Member(parts, info.is_dir(), read)


def _tar_members(source: Path, progress: Progress | None) -> Iterator[Member]:
    total = source.stat().st_size
    with source.open("rb") as raw:
        bounded = _Bounded(_decompressed(raw), source)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_TarInfo) as archive:
            for count, info in enumerate(archive):
                archive.members.clear()  # type: ignore[attr-defined]  # each holds the text of its headers
                parts = _safe_parts(source, info.name, folder=info.isdir())
                if not (info.isdir() or info.isreg()) or info.issparse():
                    raise DataError(f"{source} holds {info.name!r}, a link or a device: only files are allowed")
                if count >= MAX_MEMBERS:
                    raise DataError(f"{source} holds more than {MAX_MEMBERS} members")

                def read(info: tarfile.TarInfo = info) -> bytes:
                    with _one_line(source):
                        stream = archive.extractfile(info)
                        assert stream is not None  # a regular file
                        return read_bounded(stream, MAX_MEMBER_BYTES, f"{source}: {info.name}")

                yield Member(parts, info.isdir(), read)
                if progress is not None and count % _PROGRESS_EVERY == 0:
                    progress(raw.tell(), total)
            _check_end(archive, bounded)
    if progress is not None:
        progress(total, total)


class _TarInfo(tarfile.TarInfo):
    """A member whose extended headers, which tarfile reads whole, are bounded."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED:
            if self.type == tarfile.XGLTYPE:  # kept to the end of the archive
                archive.global_bytes = getattr(archive, "global_bytes", 0) + self.size  # type: ignore[attr-defined]
            if max(self.size, getattr(archive, "global_bytes", 0)) > MAX_HEADER_BYTES:
                raise DataError(f"an extended header of more than {MAX_HEADER_BYTES} bytes: refused")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE),
)


def _check_end(archive: tarfile.TarFile, stream: _Bounded) -> None:
    """tarfile takes a cut or a broken header for an end: there must be zeros, to the end of the file."""
    while stream.read(1 << 20):  # which is also where the checksum of gzip and xz is
        pass
    if not stream.nonzero_size <= archive.offset <= stream.size - tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end of archive where the members end")


def _begins(path: Path) -> bytes:
    with path.open("rb") as raw:
        return raw.read(6)


def _decompressed(raw: IO[bytes]) -> Readable:
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    return raw


def _check_total(source: Path, size: int) -> None:
    """Real images hardly compress: an archive that grows a hundredfold, and beyond what is free, is a bomb."""
    limit = max(FREE_BYTES, 100 * source.stat().st_size)
    if size > limit:
        raise DataError(f"{source} unpacks to more than {limit} bytes: refused as a decompression bomb")


class _Bounded(io.RawIOBase):
    """A decompressed stream that counts what came out."""

    def __init__(self, file: Readable, source: Path) -> None:
        self._file, self._source = file, source
        self.size = self.nonzero_size = 0  # all of it, and all up to the last byte that is not 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._file.read(size)
        if end := len(block.rstrip(b"\0")):
            self.nonzero_size = self.size + end
        self.size += len(block)
        _check_total(self._source, self.size)
        return block
