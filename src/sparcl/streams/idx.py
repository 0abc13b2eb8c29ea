"""seq-mnist and seq-fashion-mnist: IDX files, gzipped or not.

The format (LeCun et al., "The MNIST database"): two zero bytes, a type code, the number of dimensions, then each
size as a big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparcl import regular
from sparcl.errors import DataError, one_line
from sparcl.folders import folder_at
from sparcl.streams.augment import Transform
from sparcl.streams.download import Remote, fetch
from sparcl.streams.files import Progress, Readable
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.split import Arrays, split
from sparcl.streams.task import Name, Stream

MAX_BYTES = 1 << 30
_UBYTE = 0x08

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
_FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def seq_mnist(
    data: str | Path = "data",
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    progress: Progress | None = None,  # noqa: ARG001 - every stream that reads files takes it; these take a second
) -> Stream:
    """MNIST in five tasks of two digits; inputs uint8 [N, 1, 28, 28]; no augmentation.

    Args:
        data: the folder with the four IDX files, or its parent (`mnist/`, `MNIST/raw/`).
        classes_per_task, class_order_seed, class_order, limit_per_class, progress: see `streams.load`.

    Raises:
        DataError: a file is missing and cannot be fetched, or is damaged.
    """
    remotes = tuple(Remote(f"{f}.gz", f"{_MNIST_URL}{f}.gz", md5) for f, md5 in zip(_FILES, _MNIST_MD5, strict=True))
    arrays = read_mnist(folder_at(data, "data"), ("mnist", "MNIST/raw"), remotes, tuple(str(k) for k in range(10)))
    return split(
        "seq-mnist",
        arrays,
        Transform(),
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        class_order=class_order,
        limit_per_class=limit_per_class,
    )


def seq_fashion_mnist(
    data: str | Path = "data",
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    progress: Progress | None = None,  # noqa: ARG001 - as above
) -> Stream:
    """Fashion-MNIST, as `seq_mnist`; its folders are `fashion-mnist/` and `FashionMNIST/raw/`."""
    remotes = tuple(
        Remote(f"{f}.gz", f"{_FASHION_URL}{f}.gz", md5) for f, md5 in zip(_FILES, _FASHION_MD5, strict=True)
    )
    arrays = read_mnist(folder_at(data, "data"), ("fashion-mnist", "FashionMNIST/raw"), remotes, _FASHION_CLASSES)
    return split(
        "seq-fashion-mnist",
        arrays,
        Transform(),
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        class_order=class_order,
        limit_per_class=limit_per_class,
    )


def read_mnist(
    data: Path, subfolders: tuple[str, ...], remotes: tuple[Remote, ...], class_names: tuple[str, ...]
) -> Arrays:
    """Find the four files, fetch those that are missing, and read them."""
    if data.is_file():
        raise DataError(f"{data} is a file: the folder that holds {', '.join(_FILES)} is needed")
    places = [*(data / name for name in subfolders), data]
    folder = next((p for p in places if any(_find(p, f) for f in _FILES)), places[0])
    missing = [r for f, r in zip(_FILES, remotes, strict=True) if _find(folder, f) is None]
    if missing:
        fetch(missing, folder)
    found = [_find(folder, f) for f in _FILES]
    train_x, train_y, test_x, test_y = (read_idx(path) for path in found if path is not None)
    for path, images in ((found[0], train_x), (found[2], test_x)):
        if images.ndim != 3:
            raise DataError(f"{path} has {images.ndim} dimensions: images need 3 (N, rows, columns)")
    return Arrays(
        train_inputs=train_x[:, None],
        train_labels=train_y.astype(np.int64),
        test_inputs=test_x[:, None],
        test_labels=test_y.astype(np.int64),
        class_names=class_names,
    )


def _find(folder: Path, name: str) -> Path | None:
    """Both spellings in use (`-idx3-ubyte`, `.idx3-ubyte`), plain before gzipped."""
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / f"{spelling}{suffix}" for suffix in ("", ".gz") for spelling in spellings]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """One IDX file of unsigned bytes: uint8 of the shape that its header gives.

    The header is checked before anything of its size is allocated.

    Raises:
        DataError: another type, sizes that are absurd or do not match the file's length, damaged gzip.
    """
    try:
        with regular.open_regular(path) as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if is_gzip:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    return _parse(unpacked, path)
            return _parse(raw, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or truncated ({one_line(error)})") from error


def _parse(file: Readable, path: Path) -> npt.NDArray[np.uint8]:
    header = file.read(4)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UBYTE or not 1 <= header[3] <= 4:
        raise DataError(f"{path} is no IDX file of unsigned bytes: it begins with {header.hex() or 'nothing'}")
    sizes = file.read(4 * header[3])
    if len(sizes) < 4 * header[3]:
        raise DataError(f"{path} is truncated: its header needs {4 + 4 * header[3]} bytes")
    shape = struct.unpack(f">{header[3]}I", sizes)
    expected = math.prod(shape)
    if not 0 < expected <= MAX_BYTES:
        raise DataError(f"{path} claims the shape {shape}: allowed are 1 to {MAX_BYTES} bytes")
    content = bytearray()
    while len(content) <= expected and (block := file.read(1 << 20)):  # grows with the file, not with the claim
        content += block
    if len(content) != expected:
        more = "more than " if len(content) > expected else ""
        have = min(len(content), expected)
        raise DataError(f"{path} claims the shape {shape}, {expected} bytes, but holds {more}{have}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
