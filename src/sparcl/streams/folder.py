"""folder: any tree of images `train|test/<class>/*`, as a folder or an archive."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparcl.errors import DataError
from sparcl.streams.augment import How, Normalize, Transform
from sparcl.streams.cache import cached
from sparcl.streams.files import Member, Progress, is_junk, members
from sparcl.streams.images import IMAGE_SUFFIXES, ImageSet, Size, as_size, is_image
from sparcl.streams.split import Arrays, check_classes, split
from sparcl.streams.task import Stream

SPLITS = ("train", "test")


def folder(
    data: str | Path,
    *,
    classes_per_task: int = 2,
    class_order_seed: int | None = None,
    limit_per_class: int | None = None,
    resize: int | Size | None = None,
    augment: How = "crop+flip",
    progress: Progress | None = None,
) -> Stream:
    """A stream of your own images: `data` holds `train/<class>/*` and `test/<class>/*`; the classes are sorted by name.

    Images become RGB, are cropped (padding 4) and flipped in training unless `augment` says otherwise, and normalised
    with the mean and the standard deviation of the training images.

    Args:
        data: the folder, or an archive of it.
        classes_per_task: must divide the number of classes.
        class_order_seed, limit_per_class, progress: see `streams.load`.
        resize: the side of a square, or (height, width); None: all images must be of one size.
        augment: see `Stream.augmented`: flipping digits or traffic signs is wrong.

    Raises:
        DataError: missing, damaged, images of mixed size, a class without images, more than one tree.

    Warns:
        DataWarning: files were passed over, and how many.
    """
    source, size = Path(data), as_size(resize)
    if source.is_dir() and not is_tree(source):
        raise DataError(f"{source} holds no image tree: train/<class>/* and test/<class>/* are needed")
    arrays = cached(f"folder {size}", source, SPLITS, lambda: read_tree(source, size, progress))
    transform = Transform(statistics(arrays.train_inputs)).augmented(augment)
    return split(
        "folder",
        arrays,
        transform,
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        limit_per_class=limit_per_class,
    )


def is_tree(root: Path) -> bool:
    """Whether a folder has both splits."""
    return all((root / name).is_dir() for name in SPLITS)


class TreeReader:
    """Collects the members of an image tree, whatever folder it is packed in."""

    def __init__(self, size: Size | None = None, source: Path | None = None) -> None:
        self.images = ImageSet(size, source)
        self._classes: set[tuple[tuple[str, ...], str]] = set()  # each with the folder that its tree lies in
        self._passed_over, self._first_passed_over = 0, ""

    def take(self, member: Member) -> None:
        """Keep a class folder or an image; pass over everything else, and count it."""
        if any(is_junk(part) for part in member.parts):
            return
        class_at = -1 if member.is_folder else -2
        placed = len(member.parts) >= 1 - class_at and member.parts[class_at - 1] in SPLITS
        if placed and (member.is_folder or is_image(member.parts[-1])):
            *root, split_name, name = member.parts if member.is_folder else member.parts[:-1]
            self._classes.add((tuple(root), name))
            check_classes(len(self._classes))
            if not member.is_folder:
                self.images.add(split_name, name, member.parts[-1], member.read(), tuple(root))
        elif not member.is_folder:
            self._passed_over += 1
            self._first_passed_over = self._first_passed_over or "/".join(member.parts)

    def arrays(self, source: Path) -> Arrays:
        """The classes in alphabetical order.

        Raises:
            DataError: no images, or a class without.
        """
        if not len(self.images):
            raise DataError(f"{source} holds no images in train/<class>/* and test/<class>/*")
        classes = sorted(name for root, name in self._classes if root == self.images.root)
        note = (
            ""
            if not self._passed_over
            else (
                f"{source}: {self._passed_over} file(s) passed over, the first {self._first_passed_over}:"
                f" only images in train/<class>/ and test/<class>/ are read ({', '.join(IMAGE_SUFFIXES)})"
            )
        )
        return dataclasses.replace(self.images.arrays(classes, *SPLITS, class_names=classes), note=note)


def read_tree(source: Path, size: Size | None, progress: Progress | None) -> Arrays:
    """Decode every image of a tree: uint8 [N, 3, H, W]."""
    reader = TreeReader(size, source)
    for member in members(source, SPLITS, progress):
        reader.take(member)
    return reader.arrays(source)


def statistics(inputs: npt.NDArray[np.uint8]) -> Normalize:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], exactly, from a histogram."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(inputs.shape[1]):
        counts = sum(np.bincount(image.ravel(), minlength=256) for image in inputs[:, channel])
        share = counts / np.sum(counts)
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
    return Normalize(mean, [s or 1.0 for s in std])  # a constant channel stays as it is
