"""seq-cifar10 and seq-cifar100: the official python and binary archives, packed or unpacked, or a tree of images.

(Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the formats are those of its web page.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparcl.errors import DataError
from sparcl.folders import folder_at
from sparcl.streams import safe_pickle
from sparcl.streams.augment import CIFAR_MEAN, CIFAR_STD, Normalize
from sparcl.streams.download import Remote, fetch
from sparcl.streams.files import ARCHIVE_SUFFIXES, Progress, members
from sparcl.streams.folder import SPLITS, TreeReader, is_tree
from sparcl.streams.images import published
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.split import Arrays
from sparcl.streams.task import Name, Stream

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # inputs [N, 3, 32, 32], labels [N]


@dataclass(frozen=True)
class Layout:
    """One way in which the official files are laid out.

    Attributes:
        folder: what the archive unpacks to.
        train, test: file names.
        names: the file with the class names.
        key: in that file, and of the labels (python only).
        labels_key: of the labels (python only).
        label_bytes: before each image, the last being the label (binary only; 0: python).
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: bytes = b""
    labels_key: bytes = b""
    label_bytes: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)


@dataclass(frozen=True)
class Variant:
    """CIFAR-10 or CIFAR-100."""

    name: str
    n_classes: int
    layouts: tuple[Layout, Layout]
    archive: str  # pattern of archive names
    remote: Remote


_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
CIFAR10 = Variant(
    "seq-cifar10",
    10,
    (
        Layout("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", b"label_names", b"labels"),
        Layout(
            "cifar-10-batches-bin",
            tuple(f"{b}.bin" for b in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            label_bytes=1,
        ),
    ),
    r"cifar[-_]?10(?!\d)",
    Remote(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    ),
)
CIFAR100 = Variant(
    "seq-cifar100",
    100,
    (
        Layout("cifar-100-python", ("train",), "test", "meta", b"fine_label_names", b"fine_labels"),
        Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
    ),
    r"cifar[-_]?100(?!\d)",
    Remote(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
)


def seq_cifar10(
    data: str | Path = "data",
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    progress: Progress | None = None,
) -> Stream:
    """CIFAR-10 in five tasks of two classes; inputs uint8 [N, 3, 32, 32]; random crop (padding 4) and flip.

    Args:
        data: an official archive or its unpacked folder, a tree `train|test/<class>/*` of images or an archive of
            it, or a folder that contains one of these.
        classes_per_task, class_order_seed, class_order, limit_per_class, progress: see `streams.load`.

    Raises:
        DataError: missing and not to be fetched, damaged, hostile, or not CIFAR.
    """
    return _open(CIFAR10, data, classes_per_task, class_order_seed, class_order, limit_per_class, progress)


def seq_cifar100(
    data: str | Path = "data",
    *,
    classes_per_task: ClassesPerTask = 10,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    progress: Progress | None = None,
) -> Stream:
    """CIFAR-100, its 100 fine labels, in ten tasks of ten classes; otherwise as `seq_cifar10`."""
    return _open(CIFAR100, data, classes_per_task, class_order_seed, class_order, limit_per_class, progress)


def _open(
    variant: Variant,
    data: str | Path,
    classes_per_task: ClassesPerTask,
    class_order_seed: int | None,
    class_order: Sequence[Name] | None,
    limit_per_class: int | None,
    progress: Progress | None,
) -> Stream:
    source, tops = locate(variant, folder_at(data, "data"))
    name, normalize = variant.name, Normalize(CIFAR_MEAN, CIFAR_STD)
    cut = (classes_per_task, class_order_seed, class_order, limit_per_class)
    return published(name, source, tops, lambda: read(variant, source, tops, progress), normalize, *cut)


def locate(variant: Variant, data: Path) -> tuple[Path, tuple[str, ...]]:
    """Where the data set is: (archive or folder, what to read of the folder); fetched if it is nowhere."""
    if data.is_file():
        return data, ()
    for layout in variant.layouts:
        for folder in (data, data / layout.folder):
            if any((folder / name).is_file() for name in layout.files):
                return folder, (*layout.files, layout.names)
    if is_tree(data):
        return data, SPLITS
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        if re.match(variant.archive, path.name, re.IGNORECASE):
            if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
                return path, ()
            if is_tree(path):
                return path, SPLITS
    return fetch([variant.remote], data)[0], ()


def read(variant: Variant, source: Path, tops: tuple[str, ...], progress: Progress | None) -> Arrays:
    """Read a source once and see from its file names what it is.

    Raises:
        DataError: none of the formats, or one that is incomplete.
    """
    official = {name for layout in variant.layouts for name in (*layout.files, layout.names)}
    found: dict[str, bytes] = {}
    places: dict[str, tuple[str, ...]] = {}
    tree = TreeReader(source=source)
    tree.tested = True  # CIFAR has both splits
    for member in members(source, tops, progress):
        if not member.is_folder and member.parts[-1] in official:
            if (before := places.get(member.parts[-1])) is not None:
                raise DataError(f"{source} holds {'/'.join(before)} and {'/'.join(member.parts)}: keep one of the two")
            places[member.parts[-1]] = member.parts
            found[member.parts[-1]] = member.read()
        else:
            tree.take(member)
    layout = next((lay for lay in variant.layouts if any(name in found for name in lay.files)), None)
    if layout is not None:
        return _assemble(variant, layout, found, source)
    if not len(tree.images):
        allowed = f"{', '.join(variant.layouts[0].files)} (or these as .bin), or train|test/<class>/* images"
        raise DataError(f"{source} holds no data for {variant.name}: it needs {allowed}")
    arrays = tree.arrays(source)
    shape = arrays.train_inputs.shape[1:]
    if len(arrays.class_names) != variant.n_classes or shape != SHAPE:
        raise DataError(
            f"{source} holds {len(arrays.class_names)} classes of images {shape[2]}×{shape[1]}; {variant.name} has "
            f"{variant.n_classes} of 32×32: use the stream 'folder' for other images"
        )
    return arrays


def _assemble(variant: Variant, layout: Layout, found: dict[str, bytes], source: Path) -> Arrays:
    missing = [name for name in layout.files if name not in found]
    if missing:
        raise DataError(f"{source} is incomplete: {', '.join(missing)} missing")
    train, test = (
        _by_class([_batch(layout, found[name], f"{source}: {name}") for name in files])
        for files in (layout.train, (layout.test,))
    )
    names = _class_names(variant, layout, found.get(layout.names), f"{source}: {layout.names}")
    return Arrays(*train, *test, class_names=names)


def _by_class(batches: Sequence[Batch]) -> Batch:
    """One sorted by class, as a tree of images is, so that a task can be a view of it."""
    labels = np.concatenate([labels for _, labels in batches])
    order = np.argsort(labels, kind="stable")
    return np.concatenate([inputs for inputs, _ in batches])[order], labels[order]


def _batch(layout: Layout, content: bytes, name: str) -> Batch:
    """One official file -> uint8 [N, 3, 32, 32], int64 [N]."""
    pixels: npt.NDArray[np.uint8]
    if layout.label_bytes:
        size = layout.label_bytes + _PIXELS
        if not content or len(content) % size:
            raise DataError(f"{name} has {len(content)} bytes: a multiple of {size} is needed; is it truncated?")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
        pixels, labels = records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)
    else:
        batch = _dictionary(safe_pickle.load(content, name), name)
        labels = _label_array(batch.get(layout.labels_key), name)
        pixels = batch.get(b"data", np.empty(0, dtype=np.uint8))
        if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), _PIXELS) or not len(labels):
            raise DataError(f"{name}: 'data' is no uint8 array of shape ({len(labels)}, {_PIXELS})")
    return pixels.reshape(-1, *SHAPE), labels


def _dictionary(value: Any, name: str) -> dict[bytes, Any]:
    """With bytes as keys, also where Python 3 wrote text."""
    if not isinstance(value, dict):
        raise DataError(f"{name} holds no dictionary")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


def _label_array(labels: Any, name: str) -> npt.NDArray[np.int64]:
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 256 for v in values):
        raise DataError(f"{name}: the labels are not a list of numbers from 0 to 255")
    return np.array(values, dtype=np.int64)


def _class_names(variant: Variant, layout: Layout, content: bytes | None, name: str) -> tuple[str, ...]:
    """Of the official file; the bare numbers where it is absent."""
    if content is None:
        return tuple(str(k) for k in range(variant.n_classes))
    if layout.label_bytes:
        names: Any = content.split()
    else:
        names = _dictionary(safe_pickle.load(content, name), name).get(layout.names_key)
    if not isinstance(names, list) or len(names) != variant.n_classes:
        raise DataError(f"{name} does not list {variant.n_classes} class names")
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names)
