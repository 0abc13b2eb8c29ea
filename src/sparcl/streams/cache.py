"""Decoded data sets on disk, so that sixty thousand images are decoded once.

A cache is only ever a gain of time: one that is damaged, of another version or cannot be written is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from sparcl import regular
from sparcl.errors import out_of_memory
from sparcl.folders import cache_folder
from sparcl.streams.files import walked
from sparcl.streams.split import Arrays

MOST_REMEMBERED = 1 << 20
VERSION = 2  # raise it when decoding or the layout of the file changes


def cached(kind: str, source: Path, tops: Sequence[str], decode: Callable[[], Arrays]) -> Arrays:
    """What `decode` returns, from the cache if the source has not changed since.

    Args:
        kind: the format and everything else that decides what is decoded, such as a size.
        source: an archive or a folder; known by path, sizes and times of modification.
        tops: of a folder, what is read of it.
        decode: reads the source.
    """
    file = cache_folder() / f"{_key(kind, source, tops)}.npz"
    arrays = _read(file)
    if arrays is None:
        arrays = decode()
        _write(file, arrays)
    return arrays


def remembered(
    kind: str, source: Path, tops: Sequence[str], make: Callable[[], Any], right: Callable[[Any], bool]
) -> Any:
    """What `make` returns, JSON values, from the cache if the source has not changed since.

    Args:
        kind, source, tops: as of `cached`.
        right: whether what the cache holds can be it.
    """
    file = cache_folder() / f"{_key(kind, source, tops)}.json"
    try:
        known = json.loads(regular.read(file, MOST_REMEMBERED))
        if right(known):
            return known
    except (OSError, ValueError, RecursionError):  # absent, or damaged in any way
        pass
    made = make()
    text = json.dumps(made).encode()
    _replace(file, lambda stream: stream.write(text))
    return made


def _key(kind: str, source: Path, tops: Sequence[str]) -> str:
    facts: list[object] = [VERSION, kind, str(source.resolve())]
    files = [source] if source.is_file() else []
    for top in tops if source.is_dir() else ():
        files.append(source / top)
        for folder, names in walked(source / top):
            files += [folder / name for name in names]
    for file in files:
        try:
            status = file.stat()
            facts.append((str(file), status.st_size, status.st_mtime_ns))
        except OSError:  # absent: the reader will say so
            if os.path.lexists(file):  # a link to nowhere: not the folder that it was without
                facts.append((str(file),))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _read(file: Path) -> Arrays | None:
    try:
        with regular.open_regular(file) as stream, np.load(stream, allow_pickle=False) as saved:
            arrays = Arrays(
                train_inputs=saved["train_inputs"],
                train_labels=saved["train_labels"],
                test_inputs=saved["test_inputs"],
                test_labels=saved["test_labels"],
                class_names=tuple(str(name) for name in saved["class_names"]),
                note=str(saved["note"]),
            )
    except Exception as error:  # absent, or damaged in any way
        if out_of_memory(error):
            raise
        return None
    inputs_fit = arrays.train_inputs.dtype == arrays.test_inputs.dtype == np.uint8
    labels_fit = arrays.train_labels.dtype == arrays.test_labels.dtype == np.int64
    return arrays if inputs_fit and labels_fit else None


def _write(file: Path, arrays: Arrays) -> None:
    def write(stream: IO[bytes]) -> None:
        np.savez(
            stream,
            train_inputs=arrays.train_inputs,
            train_labels=arrays.train_labels,
            test_inputs=arrays.test_inputs,
            test_labels=arrays.test_labels,
            class_names=np.array(arrays.class_names, dtype=np.str_),
            note=np.array(arrays.note, dtype=np.str_),
        )

    _replace(file, write)


def _replace(file: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write to a temporary file, then move it: a reader never sees half of it."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            write(cast(IO[bytes], stream))
        os.replace(temporary, file)
    except OSError:  # a full or read-only disk costs time, not the run
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise
