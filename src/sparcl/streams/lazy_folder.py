"""A folder of images that are decoded when they are needed: one pass for their statistics, then batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparcl import regular
from sparcl.errors import DataError
from sparcl.streams import room
from sparcl.streams.cache import remembered
from sparcl.streams.files import MAX_MEMBER_BYTES, Progress, read_bounded
from sparcl.streams.images import Size, decode, naming
from sparcl.streams.lazy import Lazy, Source
from sparcl.streams.task import Samples

PROGRESS_EVERY = 256


class Images(Source):
    """Image files, decoded to uint8 [3, H, W] whenever they are read; nothing is kept.

    Args:
        root: for messages, files are named from here.
        files: below it.
        size: (height, width) that they are resized to; None: all are of one size.

    Raises:
        DataError: the first, whose size the others must have, is no readable image.
    """

    dtype = torch.uint8

    def __init__(self, root: Path, files: Sequence[Path], size: Size | None) -> None:
        self.root, self.files, self.size = root, list(files), size
        self.sample_shape = (3, *self._decoded(0).shape[:2])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, numbers: Sequence[int]) -> Tensor:
        out = np.empty((len(numbers), *self.sample_shape), dtype=np.uint8)
        with naming(self.root):
            self._read(numbers, out)
        return torch.from_numpy(out)

    def _read(self, numbers: Sequence[int], out: Any) -> None:
        for place, i in enumerate(numbers):
            image = self._decoded(i)
            if image.shape[:2] != self.sample_shape[1:]:
                height, width = self.sample_shape[1:]
                raise DataError(
                    f"images of mixed size: {self._name(0)} is {width}×{height}, {self._name(i)} is "
                    f"{image.shape[1]}×{image.shape[0]}; resize them all (--resize {height}, resize={height})"
                )
            out[place] = image.transpose(2, 0, 1)

    def _name(self, i: int) -> str:
        return self.files[i].relative_to(self.root).as_posix()

    def _decoded(self, i: int) -> Any:
        file = self.files[i]
        try:
            with regular.open_regular(file) as stream:
                content = read_bounded(stream, MAX_MEMBER_BYTES, str(file))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        return decode(content, self._name(i), self.size)


def fits(files: Sequence[Path], root: Path, size: Size | None) -> tuple[bool, str]:
    """Whether images fit into memory once they are decoded, and how much they need and is free, in words."""
    needed = len(files) * int(np.prod(Images(root, files[:1], size).sample_shape))
    free = room.memory_left()
    return needed <= free, f"the decoded images need {needed >> 20} MiB of memory, and {free >> 20} MiB are free"


def samples(root: Path, files: Sequence[Path], labels: Sequence[int], size: Size | None, what: str) -> Samples:
    """The files of a split with their labels, none of which is decoded yet."""
    return Samples(Lazy(Images(root, files, size), what), torch.tensor(labels, dtype=torch.int64))


def histogram(
    train: Samples, kind: str, source: Path, tops: Sequence[str], progress: Progress | None
) -> list[list[int]]:
    """How often each channel of the training images has each of the 256 values: [3, 256], of one pass over them.

    It is remembered on disk until a file changes.

    Raises:
        DataError: an image is damaged, or of another size.
    """

    def count() -> list[list[int]]:
        total = np.zeros((3, 256), dtype=np.int64)
        for i in range(len(train)):
            image = train.inputs[i].numpy()
            total += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in image])
            if progress is not None and ((i + 1) % PROGRESS_EVERY == 0 or i + 1 == len(train)):
                progress(i + 1, len(train))
        return [[int(n) for n in row] for row in total]

    pixels = len(train) * int(np.prod(train.inputs.shape[2:]))
    made: list[list[int]] = remembered(
        f"histogram {kind}", source, tops, count, lambda known: _is_histogram(known, pixels)
    )
    return made


def _is_histogram(known: Any, pixels: int) -> bool:
    """Whether what was remembered can be that of so many pixels."""
    rows = known if isinstance(known, list) and len(known) == 3 else [None]
    return all(
        isinstance(row, list) and len(row) == 256 and all(type(n) is int and n >= 0 for n in row) and sum(row) == pixels
        for row in rows
    )
