"""folder: any tree of images `train|test/<class>/*`, as a folder or an archive."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparcl.errors import ConfigError, DataError, DataWarning
from sparcl.folders import folder_at
from sparcl.streams.augment import How, Normalize, Transform
from sparcl.streams.cache import cached
from sparcl.streams.files import Member, Progress, is_junk, members
from sparcl.streams.images import IMAGE_SUFFIXES, ImageSet, Size, as_size, is_image, naming
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.lazy_folder import fits, histogram, samples
from sparcl.streams.split import Arrays, assemble, check_classes, split
from sparcl.streams.task import Name, Stream

SPLITS = ("train", "test")
FLAT = (".",)
"""A folder that holds its classes itself."""


def folder(
    data: str | Path,
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    resize: int | Size | None = None,
    augment: How = "crop+flip",
    lazy: bool | None = None,
    progress: Progress | None = None,
) -> Stream:
    """A stream of your own images: `data` holds `train/<class>/*` and `test/<class>/*`; the classes are sorted by name.

    Without `test/`, or where a folder holds `<class>/*` itself, nothing is evaluated. Images become RGB, are cropped
    (padding 4) and flipped in training unless `augment` says otherwise, and normalised with the mean and the standard
    deviation of the training images.

    Args:
        data: the folder, or an archive of it.
        classes_per_task: a number that divides the number of classes, or one for each task: [4, 3, 3].
        class_order_seed, class_order, limit_per_class, progress: see `streams.load`.
        resize: the side of a square, or (height, width); None: all images must be of one size.
        augment: see `Stream.augmented`: flipping digits or traffic signs is wrong.
        lazy: decode images whenever they are needed and keep none, after one pass for their statistics; same order,
            same bits. None: only where they would not fit into memory.

    Raises:
        DataError: missing, damaged, images of mixed size, a class without images, more than one tree.
        ConfigError: an archive that should be read lazily.

    Warns:
        DataWarning: files were passed over, and how many; a folder of images beside the splits, such as `val/`, is not
            read; images do not fit into memory and are read lazily.
    """
    source, size = folder_at(data, "data"), as_size(resize)
    tops = _tops(source)
    if beside := _unread(source, tops):
        warnings.warn(beside, DataWarning, stacklevel=2)
    cut: dict[str, Any] = {
        "classes_per_task": classes_per_task,
        "class_order_seed": class_order_seed,
        "class_order": class_order,
        "limit_per_class": limit_per_class,
    }
    if lazy and source.is_file():
        raise ConfigError(f"{source} is an archive, which cannot be read lazily: unpack it")
    with naming(source):
        if lazy is not False and source.is_dir() and (listing := _listed(source, tops, size, must=bool(lazy))):
            return _lazy(source, tops, size, listing, {**cut, "augment": augment}, progress)
        kind = f"folder {size}" if tops is SPLITS else f"folder of classes {size}"
        arrays = cached(kind, source, tops, lambda: read_tree(source, size, progress, tops))
    transform = Transform(statistics(arrays.train_inputs)).augmented(augment)
    return split("folder", arrays, transform, **cut)


def _unread(source: Path, tops: tuple[str, ...]) -> str:
    """That a folder holds images beside its splits, such as val/, in words; of an archive its files are counted."""
    if tops is not SPLITS or not source.is_dir():
        return ""
    beside = sorted(p.name for p in source.iterdir() if p.is_dir() and p.name not in SPLITS and not is_junk(p.name))
    held = [name for name in beside if any(is_image(file.name) for file in (source / name).glob("*/*"))]
    if not held:
        return ""
    hint = (
        "" if (source / "test").is_dir() else f"; call it test/ to test on {'it' if len(held) == 1 else 'one of them'}"
    )
    return f"{source}: {', '.join(f'{name}/' for name in held)} not read: only train/ and test/ are{hint}"


def _tops(source: Path) -> tuple[str, ...]:
    """What to read of a folder: its splits or, where it has none, all of it."""
    if not source.is_dir() or (source / "train").is_dir():
        return SPLITS
    if not (source / "test").is_dir() and any(p.is_dir() and not is_junk(p.name) for p in source.iterdir()):
        return FLAT
    raise DataError(
        f"{source} holds no image tree: train/<class>/* and test/<class>/* are needed, or <class>/* without a test"
    )


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: by split (path, label), sorted by class and name.

    Attributes:
        classes: their names.
        note: what the user should hear.
    """

    splits: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    note: str


def _listed(source: Path, tops: tuple[str, ...], size: Size | None, *, must: bool) -> Listing | None:
    """What is to be read lazily; None where it fits into memory and `must` not be."""
    reader = _Lister(source, flat=tops is FLAT)
    for member in members(source, tops):
        reader.take(member)
    if not reader.files:
        return None if not must else reader.listing(source)
    if must:
        return reader.listing(source)
    enough, told = fits([reader.files[key] for key in sorted(reader.files)], source, size)
    if enough:
        return None
    warnings.warn(f"{told}: they are read as they are needed", DataWarning, stacklevel=3)
    return reader.listing(source)


def _lazy(
    source: Path, tops: tuple[str, ...], size: Size | None, listing: Listing, cut: dict[str, Any], progress: Any
) -> Stream:
    if listing.note:
        warnings.warn(listing.note, DataWarning, stacklevel=3)
    of = {
        name: samples(source, [p for p, _ in files], [k for _, k in files], size, what)
        for (name, files), what in zip(listing.splits.items(), ("training", "test"), strict=False)
    }
    counts = histogram(of["train"], f"{size}", source, tops, progress)
    transform = Transform(_normalize(counts)).augmented(cut.pop("augment"))
    return assemble("folder", of["train"], of.get("test"), listing.classes, transform, **cut, share=False)


def is_tree(root: Path) -> bool:
    """Whether a folder has both splits."""
    return all((root / name).is_dir() for name in SPLITS)


class TreeReader:
    """Collects the members of an image tree, whatever folder it is packed in."""

    def __init__(self, size: Size | None = None, source: Path | None = None, *, flat: bool = False) -> None:
        self.images = ImageSet(size, source, flat=flat)
        self.flat = flat
        self.tested = not flat and source is not None and (source / "test").is_dir()
        self._classes: set[tuple[tuple[str, ...], str]] = set()  # each with the folder that its tree lies in
        self._passed_over, self._first_passed_over = 0, ""

    def take(self, member: Member) -> None:
        """Keep a class folder or an image; pass over everything else, and count it."""
        if any(is_junk(part) for part in member.parts):
            return
        folders = member.parts if member.is_folder else member.parts[:-1]
        if self.flat:
            placed, folders = len(folders) == 1, ("train", *folders)
        else:
            placed = len(folders) >= 2 and folders[-2] in SPLITS
        if placed and (member.is_folder or is_image(member.parts[-1])):
            *root, split_name, name = folders
            self.tested = self.tested or split_name == "test"
            self._classes.add((tuple(root), name))
            check_classes(len(self._classes))
            if not member.is_folder:
                self.keep(split_name, name, tuple(root), member)
        elif not member.is_folder:
            self._passed_over += 1
            self._first_passed_over = self._first_passed_over or "/".join(member.parts)

    def keep(self, split_name: str, name: str, root: tuple[str, ...], member: Member) -> None:
        """Take an image of a class in."""
        self.images.add(split_name, name, member.parts[-1], member.read(), root)

    def classes(self, source: Path) -> list[str]:
        """In alphabetical order.

        Raises:
            DataError: there are no images.
        """
        if self.images.root is None:
            raise DataError(f"{source} holds no images in {self._places('*')}")
        return sorted({name for root, name in self._classes if root == self.images.root})

    def note(self, source: Path) -> str:
        """What was passed over, in words."""
        if not self._passed_over:
            return ""
        return (
            f"{source}: {self._passed_over} file(s) passed over, the first {self._first_passed_over}:"
            f" only images in {self._places()} are read ({', '.join(IMAGE_SUFFIXES)})"
        )

    def _places(self, any_file: str = "") -> str:
        return f"<class>/{any_file}" if self.flat else f"train/<class>/{any_file} and test/<class>/{any_file}"

    def arrays(self, source: Path) -> Arrays:
        """The classes in alphabetical order.

        Raises:
            DataError: no images, or a class without.
        """
        classes = self.classes(source)
        made = self.images.arrays(classes, "train", "test" if self.tested else None, class_names=classes)
        return replace(made, note=self.note(source))


class _Lister(TreeReader):
    """Lists a folder's images and decodes none."""

    def __init__(self, source: Path, *, flat: bool) -> None:
        super().__init__(None, source, flat=flat)
        self.source = source
        self.files: dict[tuple[str, str, str], Path] = {}

    def keep(self, split_name: str, name: str, root: tuple[str, ...], member: Member) -> None:
        self.images.place(split_name, name, member.parts[-1], root)
        self.files[split_name, name, member.parts[-1]] = self.source.joinpath(*member.parts)

    def listing(self, source: Path) -> Listing:
        """Every class in every split.

        Raises:
            DataError: no images, or a class without.
        """
        classes = self.classes(source)
        splits: dict[str, list[tuple[Path, int]]] = {}
        for split_name in SPLITS if self.tested else SPLITS[:1]:
            keys = sorted(key for key in self.files if key[0] == split_name)
            splits[split_name] = [(self.files[key], classes.index(key[1])) for key in keys]
            self.images.check_classes(split_name, classes, {name for _, name, _ in keys})
        return Listing(splits, tuple(classes), self.note(source))


def read_tree(source: Path, size: Size | None, progress: Progress | None, tops: tuple[str, ...] = SPLITS) -> Arrays:
    """Decode every image of a tree: uint8 [N, 3, H, W]."""
    reader = TreeReader(size, source, flat=tops is FLAT)
    for member in members(source, tops, progress):
        reader.take(member)
    return reader.arrays(source)


def statistics(inputs: npt.NDArray[np.uint8]) -> Normalize:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], exactly, from a histogram."""
    channels = range(inputs.shape[1])
    return _normalize([sum(np.bincount(image.ravel(), minlength=256) for image in inputs[:, c]) for c in channels])


def _normalize(counts: Sequence[Any]) -> Normalize:
    """From how often each channel has each of the 256 values."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in counts:
        share = np.asarray(channel) / np.sum(channel)
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
    return Normalize(mean, [s or 1.0 for s in std])  # a constant channel stays as it is
