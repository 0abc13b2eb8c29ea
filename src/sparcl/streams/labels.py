"""Labels of any kind -> columns: names, the order of the classes, and how they are cut into tasks."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparcl.errors import ConfigError, DataError, out_of_memory, shown
from sparcl.streams.task import Name
from sparcl.whole import is_whole

Labels = Sequence[Name] | npt.NDArray[Any] | Tensor
ClassesPerTask = int | Sequence[int]


def by_name(y: Labels, what: str) -> list[Name]:
    """Labels as strings and Python's integers.

    Raises:
        DataError: they are not one string or whole number for each sample.
    """
    needed = "one string or whole number for each sample is needed (no multi-label or regression targets)"
    values: Any = _listed(y, what, needed) if isinstance(y, Tensor) else y
    if not isinstance(values, list | tuple):  # a list may mix strings and numbers, which NumPy would make strings of
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind not in "iuUO":
            raise DataError(f"{what} labels are {values.dtype} of shape {tuple(values.shape)}: {needed}")
        values = values.tolist()
    labels = [int(k) if isinstance(k, np.integer) else str(k) if isinstance(k, np.str_) else k for k in values]
    for k in labels:
        if not isinstance(k, str | int) or isinstance(k, bool):
            raise DataError(f"{what} label {shown(k)} is a {type(k).__name__}: {needed}")
    return labels


def _listed(y: Tensor, what: str, needed: str) -> npt.NDArray[Any]:
    """A tensor as an array; DataError where NumPy has no such thing (bfloat16, sparse, without memory)."""
    try:
        return y.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:  # NotImplementedError is one
        if out_of_memory(error):
            raise
        told = f"{y.dtype}, {str(y.layout).removeprefix('torch.')} on {y.device}"
        raise DataError(f"{what} labels are a tensor that cannot be read ({told}): {needed}") from None


def has_strings(y: Any) -> bool:
    """Whether labels are strings, at least in part."""
    if isinstance(y, list | tuple):
        return any(isinstance(k, str) for k in y)
    return not isinstance(y, Tensor) and np.asarray(y).dtype.kind in "UO"


def classes_of(labels: Sequence[Name]) -> list[Name]:
    """The classes of labels: whole numbers in numerical order, anything else in order of arrival.

    Raises:
        DataError: a number and a string that are written alike.
    """
    names = list(dict.fromkeys(labels))
    check_written_once(names, DataError)
    return sorted(names, key=int) if all(isinstance(name, int) for name in names) else names


def check_written_once(names: Collection[Name], error: type[DataError] | type[ConfigError]) -> None:
    """Raise `error` if a number is among the names of classes as a string, too."""
    strings = {name for name in names if isinstance(name, str)}
    twice = next((name for name in names if isinstance(name, int) and str(name) in strings), None)
    if twice is not None:
        raise error(f"there is a class {twice} and a class '{twice}': one class must be written in one way")


def places(labels: Sequence[Name], names: Sequence[Name], what: str) -> Tensor:
    """int64 [N], where in `names` each label is.

    Raises:
        DataError: it is nowhere.
    """
    place = {name: k for k, name in enumerate(names)}
    for i, name in enumerate(labels):
        if name not in place:
            told = ", ".join(map(str, names))
            told = told if len(told) <= 100 else told[:100] + "..."
            raise DataError(f"{what} label {name!r} of sample {i} is no class: allowed are {told}")
    return torch.tensor([place[name] for name in labels], dtype=torch.int64)


def ordered(names: Sequence[Name], order: Sequence[Name] | None, seed: int | None) -> Tensor:
    """int64 [C]: the k-th entry is the place in `names` of the class of column k.

    Args:
        names: the classes, in their natural order.
        order: all of them in another order; None: as they are.
        seed: of a random order; None: as they are.

    Raises:
        ConfigError: both are given, the seed is out of range, or `order` does not name each class once.
    """
    if order is not None:
        if seed is not None:
            raise ConfigError("class order and class order seed are both given: leave one of them out")
        return _named_order(names, order)
    if seed is None:
        return torch.arange(len(names))
    if not is_whole(seed, 0, 2**63 - 1):
        raise ConfigError(f"class order seed is {seed!r:.40}: allowed are 0 to 2^63 - 1")
    return torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))


def _named_order(names: Sequence[Name], order: Sequence[Name]) -> Tensor:
    written = [str(name) for name in names]
    place = {name: k for k, name in enumerate(written)}
    if len(place) < len(written):
        raise ConfigError("two classes have one name, so they cannot be put in order by name")
    needed = f"each of the {len(names)} classes is to be named once: {', '.join(written[:20])}"
    needed += f" and {len(names) - 20} more" if len(names) > 20 else ""
    if not isinstance(order, Iterable):
        raise ConfigError(f"class order is {shown(order)}, no list; {needed}")
    given = [order] if isinstance(order, str) else [str(name) for name in order]
    if (unknown := next((name for name in given if name not in place), None)) is not None:
        raise ConfigError(f"class order names {unknown!r:.60}, which is no class; {needed}")
    if (twice := next((name for k, name in enumerate(given) if name in given[:k]), None)) is not None:
        raise ConfigError(f"class order names {twice!r:.60} twice; {needed}")
    if (missing := next((name for name in written if name not in given), None)) is not None:
        raise ConfigError(f"class order leaves out {missing!r:.60}; {needed}")
    return torch.tensor([place[name] for name in given], dtype=torch.int64)


def cut(n_classes: int, classes_per_task: ClassesPerTask) -> list[tuple[int, ...]]:
    """The columns of each task.

    Args:
        n_classes: C.
        classes_per_task: a number that divides C, or one for each task, which add up to C.

    Raises:
        DataError: it does neither.
    """
    if not isinstance(classes_per_task, Iterable):
        divisors = [k for k in range(1, n_classes + 1) if n_classes % k == 0]
        if not is_whole(classes_per_task) or classes_per_task not in divisors:
            raise DataError(
                f"{n_classes} classes do not split into tasks of {classes_per_task}: allowed are"
                f" {', '.join(map(str, divisors))}, and a list that adds up to {n_classes} (classes per task)"
            )
        sizes = [int(classes_per_task)] * (n_classes // int(classes_per_task))
    else:
        sizes = list(classes_per_task)
        whole = all(map(is_whole, sizes))
        if not whole or sum(sizes) != n_classes:
            told = f"{', '.join(map(str, sizes))}"[:60]
            total = f" (which add up to {sum(sizes)})" if whole else ""
            raise DataError(
                f"{n_classes} classes do not split into tasks of {told}{total}: numbers of 1 or more that add up to"
                f" {n_classes} are needed"
            )
    ends = np.cumsum([0, *sizes]).tolist()
    return [tuple(range(first, end)) for first, end in itertools.pairwise(ends)]
