"""A `torch.utils.data.Dataset` or a `DataLoader` as samples: (x, y) each, read when they are needed.

What has a length is indexed, again in every epoch; what can only be iterated is read once, and kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from sparcl.errors import ConfigError, DataError, one_line, out_of_memory
from sparcl.streams import room
from sparcl.streams.labels import by_name
from sparcl.streams.lazy import Inputs, Lazy, Source
from sparcl.streams.task import Name

PAIR = "a pair (x, y) is needed for each sample"


def is_dataset(given: object) -> bool:
    """Whether it is a Dataset or a DataLoader of PyTorch."""
    return isinstance(given, torch_data.Dataset | torch_data.DataLoader)


def read_pairs(given: Any, what: str) -> tuple[Inputs, list[Name]]:
    """The inputs and the labels of a Dataset or a DataLoader.

    A DataLoader stands for its data set: order and batches are the Learner's. Labels are those of `dataset.targets`,
    where it has them, and else of one pass over all samples.

    Raises:
        DataError: a sample that is no (x, y), cannot be read, or is not like the first; no samples.
        ConfigError: a DataLoader whose sampler or collate_fn makes other samples than its data set has.
    """
    if isinstance(given, torch_data.DataLoader):
        if isinstance(given.dataset, torch_data.IterableDataset):
            return _kept(_batches(given, what), what)
        _check_loader(given)
        given = given.dataset
    if isinstance(given, torch_data.IterableDataset) or not hasattr(given, "__len__"):
        return _kept(given, what)
    source = Pairs(given, what)
    return Lazy(source, what), source.labels


class Pairs(Source):
    """A map-style Dataset of (x, y): x as it comes (uint8, else float32; a picture is made [C, H, W]).

    Attributes:
        labels: y of each sample; what comes later with another is refused.
    """

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what
        self.count = len(dataset)
        if self.count == 0:
            raise DataError(f"the {what} data set is empty: it must have a sample or more")
        first, _ = self._pair(0)
        if first.numel() == 0 or first.dim() == 0:
            raise DataError(f"{what} sample 0 has shape {list(first.shape)}: a non-empty [...] is needed")
        self.sample_shape, self.dtype = tuple(first.shape), first.dtype
        given = _targets(dataset)
        self.labels = by_name(given if given is not None else [self._label(i) for i in range(self.count)], what)

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: Sequence[int]) -> Tensor:
        out = torch.empty((len(numbers), *self.sample_shape), dtype=self.dtype)
        for place, i in enumerate(numbers):
            x, y = self._pair(i)
            self._check(x, i)
            if (label := by_name([_plain(y)], self.what)[0]) != self.labels[i]:
                raise DataError(f"{self.what} sample {i} came with label {label!r}, but was {self.labels[i]!r} before")
            out[place] = x
        return out

    def _label(self, i: int) -> Any:
        x, y = self._pair(i)
        self._check(x, i)
        return _plain(y)

    def _check(self, x: Tensor, i: int) -> None:
        if tuple(x.shape) != self.sample_shape or x.dtype != self.dtype:
            now, first = (
                f"{str(d).removeprefix('torch.')} {list(s)}"
                for d, s in ((x.dtype, x.shape), (self.dtype, self.sample_shape))
            )
            raise DataError(f"{self.what} sample {i} is {now}, but sample 0 is {first}: all must be alike")

    def _pair(self, i: int) -> tuple[Tensor, Any]:
        try:
            item = self.dataset[i]
        except DataError:
            raise
        except Exception as error:  # whatever the user's own code raises
            if out_of_memory(error):
                raise
            raise DataError(f"{self.what} sample {i} cannot be read: {one_line(error)}") from error
        return _parted(item, f"{self.what} sample {i}")


def _parted(item: Any, which: str) -> tuple[Tensor, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{which} is a {type(item).__name__}: {PAIR}")
    return _input(item[0], which), item[1]


def _input(x: Any, which: str) -> Tensor:
    """uint8 as it is, other numbers as float32; a picture of Pillow [C, H, W]."""
    if not isinstance(x, Tensor):
        picture = hasattr(x, "getbands")
        try:
            values = np.asarray(x)
        except (ValueError, TypeError) as error:
            raise DataError(f"{which} is no array of numbers: {one_line(error)}") from None
        if values.dtype.kind not in "biuf":
            raise DataError(f"{which} is a {type(x).__name__}: an array or tensor of numbers is needed")
        if picture:
            values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        x = torch.from_numpy(np.array(values, dtype=np.uint8 if values.dtype == np.uint8 else np.float32))
    made: Tensor = x.detach().cpu()
    if made.is_complex():
        raise DataError(f"{which} is {made.dtype}: an array or tensor of numbers is needed")
    return made if made.dtype == torch.uint8 else made.to(torch.float32)


def _plain(y: Any) -> Any:
    """A label without the array that it comes in."""
    return y.item() if isinstance(y, Tensor | np.generic) and getattr(y, "ndim", 0) == 0 else y


def _targets(dataset: Any) -> Any:
    """The labels that a data set tells without reading its samples; None where it does not."""
    if isinstance(dataset, torch_data.Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else [_plain(whole[int(i)]) for i in dataset.indices]
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    return targets if hasattr(targets, "__len__") and len(targets) == len(dataset) else None


def _check_loader(loader: Any) -> None:
    """Refuse what would be left out if only the loader's data set were used."""
    usual = (torch_data.SequentialSampler, torch_data.RandomSampler)
    # a loader that batches by itself wraps its sampler
    own_batches = loader.batch_sampler is not None and type(loader.batch_sampler) is not torch_data.BatchSampler
    chosen = not isinstance(loader.sampler, usual) or getattr(loader.sampler, "replacement", False)
    if own_batches or chosen or len(loader.sampler) != len(loader.dataset):
        kind = type(loader.batch_sampler if own_batches else loader.sampler).__name__
        raise ConfigError(
            f"the DataLoader has a {kind}, but order and batches are the Learner's: give its data set (for some of"
            " the samples, torch.utils.data.Subset of it)"
        )
    usual_collate = (torch_data.default_collate, torch_data.default_convert)
    if loader.collate_fn not in usual_collate:
        raise ConfigError(
            "the DataLoader has a collate_fn of its own, but batches are the Learner's: give a data set whose samples"
            " are (x, y) as they shall be"
        )


def _batches(loader: Iterable[Any], what: str) -> Iterator[tuple[Any, Any]]:
    """The samples of a loader's batches, one by one."""
    for number, batch in enumerate(loader):
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(hasattr(p, "__len__") for p in batch):
            raise DataError(f"{what} batch {number} is no pair (x, y) of N samples: {PAIR}")
        if len(batch[0]) != len(batch[1]):
            raise DataError(f"{what} batch {number} has {len(batch[0])} inputs but {len(batch[1])} labels")
        yield from zip(*batch, strict=True)


def _kept(samples: Iterable[Any], what: str) -> tuple[Tensor, list[Name]]:
    """What can be read but once, in memory.

    Raises:
        DataError: it does not fit; or as `read_pairs`.
    """
    free, held = room.memory_left(), 0
    inputs: list[Tensor] = []
    labels: list[Any] = []
    for i, item in enumerate(samples):
        x, y = _parted(item, f"{what} sample {i}")
        if inputs and (x.shape != inputs[0].shape or x.dtype != inputs[0].dtype):
            raise DataError(f"{what} sample {i} has shape {list(x.shape)}, sample 0 {list(inputs[0].shape)}")
        held += 2 * x.nbytes  # the samples, and all of them in one tensor
        if held > free:
            raise DataError(
                f"the {what} data can only be iterated, so it is kept in memory, and needs more than the"
                f" {free >> 20} MiB that are free: give a Dataset with a length, which is read as it is needed"
            )
        inputs.append(x.clone())
        labels.append(_plain(y))
    if not inputs:
        raise DataError(f"the {what} data set is empty: it must have a sample or more")
    return torch.stack(inputs), by_name(labels, what)
