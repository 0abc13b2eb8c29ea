"""Samples that are read when they are asked for, so that data may be larger than memory.

Legend: N samples; a sample's shape is [...], as a tensor of samples is [N, ...].
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparcl.errors import DataError

WITNESSES = 64
"""Samples that a fingerprint of what is read lazily looks at, evenly spaced."""


class Source(ABC):
    """Where samples come from.

    Attributes:
        sample_shape: of one sample.
        dtype: of what is read: uint8 or float32.
    """

    sample_shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Tensor:
        """Samples by number, [n, *sample_shape] of `dtype` on the CPU, n >= 1.

        Raises:
            DataError: one cannot be read, or is not of the shape and dtype of the others.
        """


class Lazy:
    """Inputs [N, ...] that are read when they are indexed; it stands where a tensor of inputs does.

    `inputs[ids]` reads: an int gives a sample [...], a slice or an int64 or bool tensor a tensor [n, ...].

    Args:
        source: where the samples come from.
        what: for messages: training, test.
        numbers: int64 [N], which of the source's samples; None: all, in their order.
        device: where a tensor is put that was read.
    """

    def __init__(
        self, source: Source, what: str, numbers: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.source, self.what = source, what
        self.numbers = torch.arange(len(source)) if numbers is None else numbers
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.numbers), *self.source.sample_shape))

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def to(self, device: torch.device | str) -> Self:
        """The same samples, put there as they are read."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def select(self, ids: Tensor) -> Lazy:
        """Some of the samples, int64 or bool [N], without reading any."""
        return Lazy(self.source, self.what, self.numbers[ids.cpu()], self.device)

    def take(self, ids: Tensor) -> Tensor:
        """Read the samples `ids`, int64 or bool: [n, ...], checked as it comes.

        Raises:
            DataError: one cannot be read or holds NaN or infinite values; it is named by its number in the source.
        """
        numbers = self.numbers[ids.cpu()].tolist()
        if not numbers:
            return torch.empty((0, *self.source.sample_shape), dtype=self.dtype, device=self.device)
        read = self.source.read(numbers)
        if self.dtype.is_floating_point:
            finite = torch.isfinite(read).flatten(1).all(1)
            if not bool(finite.all()):
                first = numbers[int(torch.nonzero(~finite)[0])]
                raise DataError(f"{self.what} inputs hold NaN or infinite values in sample {first}: all must be finite")
        return read.to(self.device)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return self.take(torch.tensor([index]))[0]
        return self.take(torch.arange(len(self))[index] if isinstance(index, slice) else index)

    def witness(self) -> Tensor:
        """At most `WITNESSES` samples, evenly spaced, the first and the last among them: what a fingerprint reads."""
        return self.take(witnesses(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} samples {list(self.source.sample_shape)} read from a {type(self.source).__name__}>"


def witnesses(count: int) -> Tensor:
    """Which of so many samples a fingerprint looks at, int64: at most `WITNESSES`, the first and the last included."""
    return torch.linspace(0, count - 1, min(count, WITNESSES), dtype=torch.float64).long()


Inputs = Tensor | Lazy
"""Samples [N, ...]: a tensor, or what is read when it is indexed. Both have `shape`, `dtype`, `len`, `[...]`, `to`."""


def select(inputs: Inputs, ids: Tensor) -> Inputs:
    """Some of the samples, int64 or bool `ids`; of a tensor a copy."""
    return inputs.select(ids) if isinstance(inputs, Lazy) else inputs[ids.to(inputs.device)]


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Samples one after another; read lazily where one of the parts is."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    whats = [part.what for part in parts if isinstance(part, Lazy)]
    return Lazy(Joined(parts), whats[0])


class Joined(Source):
    """Several inputs, one after another."""

    def __init__(self, parts: Sequence[Inputs]) -> None:
        self.parts = list(parts)
        self.sample_shape, self.dtype = tuple(parts[0].shape[1:]), parts[0].dtype
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, numbers: Sequence[int]) -> Tensor:
        asked = torch.tensor(numbers)
        of_part = torch.searchsorted(self.ends, asked, right=True)
        out = torch.empty((len(asked), *self.sample_shape), dtype=self.dtype)
        for k in torch.unique(of_part).tolist():
            here = of_part == k
            out[here] = self.parts[k][asked[here] - (int(self.ends[k - 1]) if k else 0)].cpu()
        return out


class Mapped(Source):
    """An array that lies in a file (`np.memmap`): never copied whole; what changes in the file changes here.

    uint8 stays uint8; other numbers become float32, batch by batch.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array
        self.sample_shape = tuple(array.shape[1:])
        self.dtype = torch.uint8 if array.dtype == np.uint8 else torch.float32

    def __len__(self) -> int:
        return len(self.array)

    def read(self, numbers: Sequence[int]) -> Tensor:
        batch = np.asarray(self.array[np.asarray(numbers)])
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused as such
            return torch.from_numpy(batch.astype(np.uint8 if self.dtype == torch.uint8 else np.float32, copy=False))
