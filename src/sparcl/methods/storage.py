"""How the buffer holds an input: as it came, in half precision, or as a JPEG in memory.

Legend: N samples, n filled, C channels, H × W pixels.
"""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError, DataError, one_line

QUALITY = 90
"""Of a JPEG in memory, 1 to 95: what is lost is below what augmentation changes."""

LARGEST_HALF = 65504.0
MOST_PIXELS = 1 << 28


class Blobs:
    """Byte strings of different lengths, indexed as a tensor's rows are; empty ones are places not filled yet."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Tensor | slice) -> Blobs:
        if isinstance(rows, slice):
            return Blobs(self.items[rows])
        return Blobs([self.items[row] for row in rows.tolist()])

    def put(self, rows: Tensor, offered: Blobs) -> None:
        """Write the offered items at these places."""
        for row, item in zip(rows.tolist(), offered.items, strict=True):
            self.items[row] = item

    def sizes(self) -> list[int]:
        """Bytes that each takes, as Python holds it: the string itself, and its place in the list."""
        return [sys.getsizeof(item) + 8 for item in self.items]

    @property
    def nbytes(self) -> int:
        return sys.getsizeof([]) + sum(self.sizes())


Held = Tensor | Blobs
"""A field of the buffer: a row for each place."""


def with_rows(held: Held, rows: int) -> Held:
    """What is held, with so many places; no fewer than there are."""
    if len(held) >= rows:
        return held
    if isinstance(held, Blobs):
        return Blobs([*held.items, *[b""] * (rows - len(held))])
    roomy = held.new_zeros((rows, *held.shape[1:]))
    roomy[: len(held)] = held
    return roomy


def put(held: Held, into: Tensor, offered: Held) -> None:
    """Write what is offered at the places `into`."""
    if isinstance(held, Blobs):
        assert isinstance(offered, Blobs)
        held.put(into, offered)
    else:
        assert isinstance(offered, Tensor)
        held[into] = offered


def joined(one: Held, other: Held) -> Held:
    """The rows of both."""
    if isinstance(one, Blobs) or isinstance(other, Blobs):
        assert isinstance(one, Blobs)
        assert isinstance(other, Blobs)
        return Blobs([*one.items, *other.items])
    return torch.cat([one, other])


class Storage(ABC):
    """A form to hold inputs in."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, inputs: Tensor) -> None:
        """Raise DataError if inputs [N, ...] of a task cannot be held so."""

    @abstractmethod
    def stored(self, inputs: Tensor) -> Held:
        """The form of inputs [N, ...]."""

    @abstractmethod
    def inputs(self, held: Held, device: torch.device) -> Tensor:
        """Inputs [N, ...] of what is held."""

    @abstractmethod
    def kind(self, held: Held) -> tuple[torch.dtype, torch.Size]:
        """Dtype and shape of one input, of what is held (one sample at least)."""

    def sample_bytes(self, inputs: Tensor) -> int | None:
        """Bytes of one input, of inputs [N, ...]; None where they differ."""
        return self.stored(inputs[:1]).nbytes

    def state(self, held: Held) -> dict[str, Any]:
        """For a checkpoint."""
        assert isinstance(held, Tensor)
        return {"inputs": held}

    fields: ClassVar[tuple[str, ...]] = ("inputs",)
    """Of `state`."""

    def loaded(self, state: Mapping[str, Any], count: int) -> Held:
        """What `state` gave, of so many samples.

        Raises:
            CheckpointError: it is not well formed.
        """
        held = state["inputs"]
        if not isinstance(held, Tensor) or held.shape[:1] != (count,):
            raise CheckpointError(f"the buffer in the checkpoint does not hold {count} samples")
        return held


class Raw(Storage):
    """As they came: uint8 stays uint8."""

    name = "raw"

    def check(self, inputs: Tensor) -> None:
        pass

    def stored(self, inputs: Tensor) -> Held:
        return inputs

    def inputs(self, held: Held, device: torch.device) -> Tensor:
        del device
        assert isinstance(held, Tensor)
        return held

    def kind(self, held: Held) -> tuple[torch.dtype, torch.Size]:
        assert isinstance(held, Tensor)
        return held.dtype, held.shape[1:]


class Half(Raw):
    """Floating inputs in half precision, two bytes a number; they come out as float32."""

    name = "float16"

    def check(self, inputs: Tensor) -> None:
        if not inputs.is_floating_point():
            kind = str(inputs.dtype).removeprefix("torch.")
            raise DataError(
                f"buffer storage float16 is for floating inputs, not {kind}, which raw holds in fewer bytes"
            )
        largest = float(inputs.abs().max())
        if largest > LARGEST_HALF:
            raise DataError(
                f"buffer storage float16 holds numbers up to {LARGEST_HALF:.0f}, and the task's inputs go to"
                f" {largest:.6g}: use raw"
            )

    def stored(self, inputs: Tensor) -> Held:
        self.check(inputs)  # of data that is read lazily not all was looked at
        return inputs.half()

    def inputs(self, held: Held, device: torch.device) -> Tensor:
        del device
        assert isinstance(held, Tensor)
        return held.float()

    def kind(self, held: Held) -> tuple[torch.dtype, torch.Size]:
        assert isinstance(held, Tensor)
        return torch.float32, held.shape[1:]

    def loaded(self, state: Mapping[str, Any], count: int) -> Held:
        held = super().loaded(state, count)
        if not isinstance(held, Tensor) or held.dtype != torch.float16:
            raise CheckpointError("the buffer's inputs in the checkpoint are not float16")
        return held


class Jpeg(Storage):
    """uint8 images [1, H, W] or [3, H, W], each as a JPEG of quality `QUALITY`: lossy, and larger than the pixels where
    these are few (a JPEG's tables alone take some 600 bytes).
    """

    name = "jpeg"
    fields = ("inputs", "lengths")

    def check(self, inputs: Tensor) -> None:
        if inputs.dtype != torch.uint8 or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
            kind = f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape[1:])}"
            raise DataError(f"buffer storage jpeg is for uint8 images [3, H, W] or [1, H, W], not for {kind}: use raw")

    def stored(self, inputs: Tensor) -> Held:
        image = _pillow()
        pixels = inputs.cpu().permute(0, 2, 3, 1).numpy()
        blobs = []
        for one in pixels:
            made, out = image.fromarray(np.ascontiguousarray(one if one.shape[2] == 3 else one[:, :, 0])), io.BytesIO()
            made.save(out, "JPEG", quality=QUALITY)
            blobs.append(out.getvalue())
        return Blobs(blobs)

    def inputs(self, held: Held, device: torch.device) -> Tensor:
        assert isinstance(held, Blobs)
        return torch.stack([_decoded(item) for item in held.items]).to(device)

    def kind(self, held: Held) -> tuple[torch.dtype, torch.Size]:
        assert isinstance(held, Blobs)
        return torch.uint8, _decoded(held.items[0]).shape

    def sample_bytes(self, inputs: Tensor) -> int | None:
        del inputs
        return None

    def state(self, held: Held) -> dict[str, Any]:
        assert isinstance(held, Blobs)
        whole = np.frombuffer(bytearray(b"".join(held.items)), dtype=np.uint8)
        return {"inputs": torch.from_numpy(whole), "lengths": torch.tensor([len(item) for item in held.items])}

    def loaded(self, state: Mapping[str, Any], count: int) -> Held:
        lengths = checks.tensor(state["lengths"], "the buffer's lengths", torch.int64, (count,))
        checks.within(lengths, "the buffer's lengths", 1, 1 << 32)
        whole = checks.tensor(state["inputs"], "the buffer's JPEGs", torch.uint8, (int(lengths.sum()),))
        blobs = Blobs([bytes(part.numpy()) for part in torch.split(whole.cpu(), lengths.tolist())])
        shapes = {tuple(_decoded(item).shape) for item in blobs.items}
        if len(shapes) != 1:
            raise CheckpointError("the buffer's JPEGs in the checkpoint are of different shapes")
        return blobs

    @classmethod
    def usable(cls) -> Self:
        """One; ConfigError where Pillow is missing."""
        _pillow()
        return cls()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "buffer storage jpeg needs Pillow; install it with: pip install 'sparcl-edge[images]'"
        ) from None
    return Image


def _decoded(blob: bytes) -> Tensor:
    """uint8 [C, H, W] of a JPEG, which may come from a stranger's checkpoint."""
    image = _pillow()
    try:
        with image.open(io.BytesIO(blob), formats=("JPEG",)) as opened:
            if opened.mode not in ("RGB", "L") or opened.width * opened.height > MOST_PIXELS:
                raise CheckpointError(f"a JPEG in the buffer is {opened.mode} of {opened.size}, which was never stored")
            pixels = np.array(opened)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise CheckpointError(f"a JPEG in the buffer is damaged ({one_line(error)})") from None
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


STORAGES: dict[str, type[Storage]] = {kind.name: kind for kind in (Raw, Half, Jpeg)}


def make_storage(name: str) -> Storage:
    """A form by its name.

    Raises:
        ConfigError: an unknown name, or Pillow is missing.
    """
    if name not in STORAGES:
        raise ConfigError(f"unknown buffer storage {name!r}; allowed: {', '.join(STORAGES)}")
    return Jpeg.usable() if name == Jpeg.name else STORAGES[name]()
