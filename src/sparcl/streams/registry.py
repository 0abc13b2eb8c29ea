"""The streams by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparcl.errors import ConfigError, DataError
from sparcl.streams.cifar import seq_cifar10, seq_cifar100
from sparcl.streams.digits import seq_digits
from sparcl.streams.files import Progress
from sparcl.streams.folder import folder
from sparcl.streams.idx import seq_fashion_mnist, seq_mnist
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.task import Name, Stream
from sparcl.streams.tinyimagenet import seq_tinyimg


@dataclass(frozen=True)
class Entry:
    """One named stream.

    Attributes:
        open: the function that loads it.
        needs_data: whether it reads files (and takes `data` and `progress`).
        resizes: whether it takes `resize` and `lazy`.
    """

    open: Callable[..., Stream]
    needs_data: bool = True
    resizes: bool = False


STREAMS: dict[str, Entry] = {
    "seq-digits": Entry(seq_digits, needs_data=False),
    "seq-mnist": Entry(seq_mnist),
    "seq-fashion-mnist": Entry(seq_fashion_mnist),
    "seq-cifar10": Entry(seq_cifar10),
    "seq-cifar100": Entry(seq_cifar100),
    "seq-tinyimg": Entry(seq_tinyimg),
    "folder": Entry(folder, resizes=True),
}


def load(
    name: str,
    data: Path | None = None,
    *,
    classes_per_task: ClassesPerTask | None = None,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    resize: int | tuple[int, int] | None = None,
    lazy: bool | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Load a stream by its name.

    Args:
        name: a key of `STREAMS`.
        data: a folder or an archive; None is the folder `data`. seq-digits reads none.
        classes_per_task: a number that divides the number of classes, or one for each task: [4, 3, 3]. None is the
            published split of the stream.
        class_order_seed: shuffles the classes over the tasks; None keeps the natural order.
        class_order: the names of all classes, in the order in which they come.
        limit_per_class: keep only the first so many training and so many test samples of a class.
        resize: only for `folder`: the side of a square, or (height, width).
        lazy: only for `folder`: whether images are decoded whenever they are needed; None: if they would not fit.
        progress: called with (done, total) while files are read for the first time.

    Raises:
        ConfigError: an unknown name, or an option that the stream does not have.
        DataError: data that is missing, damaged or does not fit.
    """
    if name not in STREAMS:
        raise ConfigError(f"unknown stream {name!r}: allowed are {', '.join(STREAMS)}")
    entry = STREAMS[name]
    options: dict[str, Any] = {
        "class_order_seed": class_order_seed,
        "class_order": class_order,
        "limit_per_class": limit_per_class,
    }
    if classes_per_task is not None:
        options["classes_per_task"] = classes_per_task
    if resize is not None:
        if not entry.resizes:
            able = ", ".join(k for k, e in STREAMS.items() if e.resizes)
            raise ConfigError(f"{name} images have one size already: only {able} can be resized")
        options["resize"] = resize
    if lazy is not None:
        if not entry.resizes:
            able = ", ".join(k for k, e in STREAMS.items() if e.resizes)
            raise ConfigError(f"{name} is held in memory whole: only {able} can be read lazily")
        options["lazy"] = lazy
    if not entry.needs_data:
        return entry.open(**options)
    place = data if data is not None else Path("data")
    try:
        return entry.open(place, progress=progress, **options)
    except OSError as error:  # such as a folder that may not be listed
        raise DataError(f"{error.filename or place} cannot be read: {error.strerror}") from error
