"""Decoding images to uint8, once, from files that may be damaged or hostile."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sparcl.errors import ConfigError, DataError, SparclError, one_line, out_of_memory
from sparcl.streams import room
from sparcl.streams.augment import Normalize, Transform
from sparcl.streams.cache import cached
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.split import Arrays, split
from sparcl.streams.task import Name, Stream
from sparcl.whole import is_whole

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 64_000_000  # of one image, before any resize
FREE_BYTES = 1 << 30  # that any source may decode to
MOST_GROWTH = 1000  # decoded bytes for one of the source beyond that: what PNG reaches on blank pictures; photos: 30
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none that starts another program, as EPS does

ORIENTATION = 0x0112  # EXIF's tag

Size = tuple[int, int]


def as_size(resize: int | Size | None) -> Size | None:
    """An int is the side of a square; a pair is (height, width).

    Raises:
        ConfigError: not positive.
    """
    size = resize if resize is None or isinstance(resize, Sequence) else (resize, resize)
    if size is not None and (len(size) != 2 or not all(map(is_whole, size)) or size[0] * size[1] > MAX_PIXELS):
        raise ConfigError(f"resize is {resize!r:.40}: allowed are a side or (height, width), in pixels above 0")
    return size


def is_image(name: str) -> bool:
    """By its suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


Check = Callable[[int, int], None]
"""Told of (width, height) from an image's header, before it is decoded; it may refuse."""


def decode(
    content: bytes,
    name: str,
    size: Size | None = None,
    check: Check | None = None,
    resized: Callable[[], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """One image file -> RGB, uint8 [H, W, 3]; grey, palette and alpha are converted.

    Args:
        content: the file.
        name: for messages.
        size: (height, width) to resize to, bilinear with antialiasing; None keeps the image's own.
        check: asked before anything is decoded.
        resized: told where the upright image is of another size.

    Raises:
        DataError: damaged, truncated, of another format, or larger than `MAX_PIXELS`.
        SparclError: Pillow is not installed.
    """
    try:
        from PIL import Image as PILImage
        from PIL import UnidentifiedImageError
    except ImportError as error:
        raise SparclError('reading images needs Pillow: pip install "sparcl-edge[images]"') from error
    try:
        with warnings.catch_warnings(action="ignore"), PILImage.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{name} has {image.width}×{image.height} pixels: at most {MAX_PIXELS} are allowed")
            if check is not None:
                check(image.width, image.height)
            rgb = _upright(_to_rgb(image), image)
            if size is not None and rgb.size != size[::-1]:
                rgb = rgb.resize(size[::-1], PILImage.Resampling.BILINEAR)
                if resized is not None:
                    resized()
            return np.asarray(rgb)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if out_of_memory(error):
            raise
        detail = "of no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DataError(f"{name} is no readable image ({detail}): allowed are {', '.join(_FORMATS)}") from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image as PILImage

    if image.mode.startswith("I;16"):
        return PILImage.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # whose levels reach 65535, whatever the file's own most
        return PILImage.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: it has 32 bits per channel, 8 or 16 are needed")
    if image.mode == "P":
        image = image.convert("RGBA")  # keeps what a transparent palette entry hides
    return image.convert("RGB")


def _upright(rgb: Image, image: Image) -> Image:
    """`rgb`, made of `image`, turned as the file's EXIF says that it was taken: a phone turns no pixels itself."""
    from PIL import Image as PILImage

    turn = PILImage.Transpose
    by_orientation = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    try:
        needed = by_orientation.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged notes beside pixels that are whole
        return rgb
    return rgb if needed is None else rgb.transpose(needed)


@contextmanager
def naming(source: Path) -> Iterator[None]:
    """What is refused in here names the data that it is of."""
    try:
        yield
    except DataError as error:
        if str(source) in str(error):
            raise
        raise DataError(f"{source}: {error}") from error


def published(
    name: str,
    source: Path,
    tops: Sequence[str],
    read: Callable[[], Arrays],
    normalize: Normalize,
    classes_per_task: ClassesPerTask,
    class_order_seed: int | None,
    class_order: Sequence[Name] | None,
    limit_per_class: int | None,
) -> Stream:
    """The stream of a published data set of colour images: read once, kept, and cropped and flipped in training."""
    with naming(source):
        return split(
            name,
            cached(name, source, tops, read),
            Transform(normalize, crop_padding=4, flip=True),
            classes_per_task=classes_per_task,
            class_order_seed=class_order_seed,
            class_order=class_order,
            limit_per_class=limit_per_class,
        )


class ImageSet:
    """Decoded images by (split, class, file), until they become arrays in an order of their own.

    Args:
        size: (height, width) that every image is resized to; None: they must all be of one size.
        source: the archive that they come from; None: they are files of their own. It bounds what may be decoded.
        flat: the classes lie in no folder of a split, so that messages name none.
    """

    def __init__(self, size: Size | None = None, source: Path | None = None, *, flat: bool = False) -> None:
        self._size, self._flat = size, flat
        self._source_bytes = source.stat().st_size if source is not None and source.is_file() else None
        self._read_bytes = self._decoded_bytes = self._kept_bytes = 0
        self._room = room.memory_left()
        self._images: dict[tuple[str, str, str], npt.NDArray[np.uint8]] = {}
        self._first: tuple[str, tuple[int, ...]] | None = None
        self.root: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def add(self, split: str, class_name: str, file: str, content: bytes, root: tuple[str, ...] = ()) -> None:
        """Decode and keep one image; `root` is the folder of the source that its tree lies in.

        Raises:
            DataError: unreadable; its size differs from the first image's; of another tree; or there already.
        """
        name = self.place(split, class_name, file, root)
        self._read_bytes += len(content)
        image = decode(content, name, self._size, self._check)
        if self._first is None:
            self._first = (name, image.shape)
        first, shape = self._first
        if image.shape != shape:
            raise DataError(
                f"images of mixed size: {first} is {shape[1]}×{shape[0]}, {name} is "
                f"{image.shape[1]}×{image.shape[0]}; resize them all (--resize {shape[0]}, resize={shape[0]})"
            )
        self._images[split, class_name, file] = image

    def place(self, split: str, class_name: str, file: str, root: tuple[str, ...] = ()) -> str:
        """The name of an image that is to be added, or is but listed.

        Raises:
            DataError: it is of another tree, or there already.
        """
        name = "/".join(filter(None, ("" if self._flat else split, class_name, file)))
        self.root = root if self.root is None else self.root
        if root != self.root:
            one, other = ("/".join((*folder, split)) for folder in (self.root, root))
            raise DataError(
                f"there are two trees, {one}/ and {other}/: keep one of them, or name its folder as the data"
            )
        if (split, class_name, file) in self._images:
            raise DataError(f"{'/'.join((*root, name))} is there twice: keep one of the two")
        return name

    def _check(self, width: int, height: int) -> None:
        """Refuse what would not fit into memory, or grows as no picture does, before it is decoded."""
        self._decoded_bytes += 3 * width * height
        kept_height, kept_width = self._size or (height, width)
        self._kept_bytes += 3 * kept_height * kept_width
        if self._kept_bytes > self._room:
            raise DataError(
                f"the decoded images need more than the {self._room >> 20} MiB of memory that are free: resize them to"
                " a smaller size, or read a folder of them lazily (--lazy, lazy=True)"
            )
        source = self._read_bytes if self._source_bytes is None else self._source_bytes
        if self._decoded_bytes > max(FREE_BYTES, MOST_GROWTH * source):
            raise DataError(
                f"{source} bytes of images decode to more than {max(FREE_BYTES, MOST_GROWTH * source)}: refused as a"
                " decompression bomb"
            )

    def move(self, split: str, class_of: dict[str, str]) -> None:
        """Give the images of a split that came without class (as "") the class of their file name.

        Raises:
            DataError: a file without class.
        """
        for key in [k for k in self._images if k[0] == split and not k[1]]:
            if key[2] not in class_of:
                raise DataError(f"{split}/{key[2]} has no class: its annotation is missing")
            self._images[split, class_of[key[2]], key[2]] = self._images.pop(key)

    def arrays(self, classes: Sequence[str], train: str, test: str | None, class_names: Sequence[str]) -> Arrays:
        """Stack to uint8 [N, 3, H, W], sorted by class and file; the set is empty afterwards.

        Args:
            classes: in label order.
            train, test: the names of the splits; None where there are no test images.
            class_names: what to call the classes.

        Raises:
            DataError: an image of a class that is not listed, or a class without images.
        """
        label_of = {name: k for k, name in enumerate(classes)}
        unknown = next((key for key in self._images if key[1] not in label_of), None)
        if unknown is not None:
            raise DataError(f"{unknown[0]}/{unknown[2]} is of the unknown class {unknown[1]!r}")
        inputs, labels = self._stack(train, label_of)
        held_out = (inputs[:0], labels[:0]) if test is None else self._stack(test, label_of)
        return Arrays(inputs, labels, *held_out, class_names=tuple(class_names))

    def check_classes(self, split: str, classes: Iterable[str], found: Collection[str]) -> None:
        """Refuse a class that is not among those `found` in a split (DataError)."""
        if empty := sorted(set(classes) - set(found)):
            place = empty[0] if self._flat else split
            raise DataError(f"class {empty[0]!r} has no images in {place}/: every class needs at least one")

    def _stack(self, split: str, label_of: dict[str, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        keys = sorted((k for k in self._images if k[0] == split), key=lambda k: (label_of[k[1]], k[2]))
        self.check_classes(split, label_of, {k[1] for k in keys})
        height, width, _ = self._images[keys[0]].shape
        inputs = np.empty((len(keys), 3, height, width), dtype=np.uint8)
        for i, key in enumerate(keys):
            inputs[i] = self._images.pop(key).transpose(2, 0, 1)  # popped: never the whole set twice in memory
        return inputs, np.array([label_of[k[1]] for k in keys], dtype=np.int64)
