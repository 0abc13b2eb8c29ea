"""seq-tinyimg: Tiny-ImageNet-200 in its official layout, packed (zip or tar) or unpacked.

`wnids.txt` lists the classes in label order; `train/<wnid>/images/*` and `val/images/*` with `val/val_annotations.txt`
are the training and the test images (the official test images have no published labels).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sparcl.errors import DataError
from sparcl.folders import folder_at
from sparcl.streams.augment import TINY_IMAGENET_MEAN, TINY_IMAGENET_STD, Normalize
from sparcl.streams.download import Remote, fetch
from sparcl.streams.files import ARCHIVE_SUFFIXES, Member, Progress, is_junk, members
from sparcl.streams.images import ImageSet, is_image, published
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.split import Arrays
from sparcl.streams.task import Name, Stream

_FOLDER = "tiny-imagenet-200"
_TEXTS = ("wnids.txt", "words.txt", "val_annotations.txt")
_TOPS = ("wnids.txt", "words.txt", "train", "val")
_REMOTE = Remote(
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
)


def seq_tinyimg(
    data: str | Path = "data",
    *,
    classes_per_task: ClassesPerTask = 20,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Tiny-ImageNet in ten tasks of twenty classes; inputs uint8 [N, 3, 64, 64]; random crop (padding 4) and flip.

    Args:
        data: the official zip (or a tar of it), its unpacked folder, or a folder that contains one of these.
        classes_per_task, class_order_seed, class_order, limit_per_class, progress: see `streams.load`.

    Raises:
        DataError: missing and not to be fetched, damaged, hostile, or incomplete.
    """
    source, tops = locate(folder_at(data, "data"))
    normalize = Normalize(TINY_IMAGENET_MEAN, TINY_IMAGENET_STD)
    cut = (classes_per_task, class_order_seed, class_order, limit_per_class)
    return published("seq-tinyimg", source, tops, lambda: read(source, tops, progress), normalize, *cut)


def locate(data: Path) -> tuple[Path, tuple[str, ...]]:
    """Where the data set is: (archive or folder, what to read of the folder); fetched if it is nowhere."""
    if data.is_file():
        return data, ()
    for folder in (data, data / _FOLDER):
        if (folder / "wnids.txt").is_file():
            return folder, _TOPS
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        named = re.match(r"tiny[-_]?imagenet", path.name, re.IGNORECASE)
        if named and path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
            return path, ()
    return fetch([_REMOTE], data)[0], ()


def read(source: Path, tops: tuple[str, ...], progress: Progress | None) -> Arrays:
    """Decode every image: uint8 [N, 3, H, W], the labels in the order of `wnids.txt`.

    Raises:
        DataError: a file of the layout is missing, or an image has no class.
    """
    texts: dict[str, str] = {}
    images = ImageSet(source=source)
    for member in members(source, tops, progress):
        if member.is_folder or is_junk(member.parts[-1]):
            continue
        if member.parts[-1] in _TEXTS:
            texts[member.parts[-1]] = member.read().decode("utf-8-sig", "replace")
        elif (place := _place(member)) is not None:
            split_name, class_name, root = place
            images.add(split_name, class_name, member.parts[-1], member.read(), root)
    missing = [name for name in ("wnids.txt", "val_annotations.txt") if name not in texts]
    if missing or not len(images):
        raise DataError(f"{source} is not in Tiny-ImageNet's layout: {', '.join(missing) or 'images'} missing")
    wnids = texts["wnids.txt"].split()
    rows = (line.split("\t") for line in texts["val_annotations.txt"].splitlines())
    images.move("val", {row[0]: row[1].strip() for row in rows if len(row) > 1})
    return images.arrays(wnids, "train", "val", class_names=_names(wnids, texts.get("words.txt", "")))


def _place(member: Member) -> tuple[str, str, tuple[str, ...]] | None:
    """(split, class, folder of the tree) of an image, the class of a validation image being unknown yet; None: not of
    this layout."""
    above = member.parts[:-1]
    if not is_image(member.parts[-1]) or above[-1:] != ("images",):
        return None
    if above[-3:-2] == ("train",):
        return "train", above[-2], above[:-3]
    return ("val", "", above[:-2]) if above[-2:-1] == ("val",) else None


def _names(wnids: list[str], words: str) -> list[str]:
    """The first word for each class; its WordNet id where there is none."""
    rows = (line.partition("\t") for line in words.splitlines())
    word_of = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
    return [word_of.get(wnid) or wnid for wnid in wnids]
