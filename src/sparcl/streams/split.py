"""Arrays -> Stream: check the data, order the classes, cut them into tasks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparcl.errors import ConfigError, DataError, DataWarning, one_line
from sparcl.streams.augment import How, Transform, check_transform
from sparcl.streams.dataset import is_dataset, read_pairs
from sparcl.streams.labels import ClassesPerTask, Labels, by_name, classes_of, cut, has_strings, ordered, places
from sparcl.streams.lazy import Inputs, Lazy, Mapped, select
from sparcl.streams.task import Name, Samples, Stream, Task, short
from sparcl.whole import is_whole

MAX_CLASSES = 1 << 15
"""The largest image data sets have 22,000: more are a mistake, and each would be looked for in every sample."""

ArrayLike = npt.NDArray[Any] | Tensor


@dataclass(frozen=True)
class Arrays:
    """A whole data set in memory, before it is split.

    Attributes:
        train_inputs, test_inputs: uint8 [N, C, H, W] as decoded; without a test split N is 0 there.
        train_labels, test_labels: int64 [N], index into `class_names`.
        class_names: in the data set's own label order.
        note: what the user should hear about how it was read.
    """

    train_inputs: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_inputs: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    note: str = ""


def from_arrays(
    train_inputs: Any,
    train_labels: Labels | None = None,
    test_inputs: Any = None,
    test_labels: Labels | None = None,
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transform | None = None,
    augment: How | None = None,
    name: str = "arrays",
) -> Stream:
    """Make a stream of your own NumPy arrays or tensors, or of PyTorch's data sets.

    An array that lies in a file (`np.memmap`) and a `torch.utils.data.Dataset` or `DataLoader` are read batch by batch
    and never copied whole; what can only be iterated is kept in memory.

    Args:
        train_inputs, test_inputs: uint8 or floating [N, ...]; images as [N, C, H, W]. Other integers (a sensor's
            int16) become float32 as they are. Or a Dataset or DataLoader of (x, y), without labels beside it. Without
            test inputs nothing is evaluated.
        train_labels, test_labels: [N], strings or whole numbers. 0 to C - 1 are the columns of the logits; others are
            kept by name, numbers in numerical order and strings in order of arrival.
        classes_per_task: a number that divides the number of classes, or one for each task: [4, 3, 3].
        class_order_seed: shuffles the classes over the tasks; None keeps the natural order.
        class_order: all classes, in the order in which they come.
        limit_per_class: keep only the first so many training and so many test samples of a class.
        class_names: one for each class; None takes the labels themselves.
        transform: augmentation and normalisation; None only scales uint8 to [0, 1].
        augment: in place of the transform's crop and flip, see `Stream.augmented`; None leaves these.
        name: what the records call the stream.

    Raises:
        DataError: sizes that do not match, a label out of range, a class without samples, NaN or infinite
            inputs, classes that do not divide into tasks.
        ConfigError: an option outside its range, or a transform that does not fit the inputs.
    """
    check_transform(transform := transform or Transform(), "from_arrays")
    train_x, train_y = _given(train_inputs, train_labels, "training")
    test = None if test_inputs is None and test_labels is None else _given(test_inputs, test_labels, "test")
    names, train_columns, test_columns = _columns(train_y, None if test is None else test[1], class_names)
    if len(names) > len(train_columns):  # also keeps one absurd label from becoming as many logits
        raise DataError(
            f"{len(train_columns)} training samples cannot fill {len(names)} classes: each needs at least one"
        )
    return assemble(
        name,
        Samples(train_x, train_columns),
        None if test is None or test_columns is None else Samples(test[0], test_columns),
        names,
        transform if augment is None else transform.augmented(augment),
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        class_order=class_order,
        limit_per_class=limit_per_class,
        share=False,  # the user may change the arrays later
    )


def _given(inputs: Any, labels: Labels | None, what: str) -> tuple[Inputs, Labels]:
    """Inputs and labels, which a data set has together."""
    if labels is None and is_dataset(inputs):
        return read_pairs(inputs, what)
    if labels is None or inputs is None:
        missing = "labels" if labels is None else "inputs"
        raise DataError(f"there are no {what} {missing}: give inputs and labels, or a Dataset or DataLoader of (x, y)")
    return stored(inputs, what), labels


def _columns(
    train: Labels, test: Labels | None, class_names: Sequence[str] | None
) -> tuple[tuple[Name, ...], Tensor, Tensor | None]:
    """The classes, and int64 [N] for the labels of both splits: where in the classes each is."""
    class_names = None if class_names is None else _named(class_names)
    if not has_strings(train):
        numbers = as_labels(train, "training")
        present = torch.unique(numbers)
        plain = torch.equal(present, torch.arange(len(present)))
        if plain or class_names is not None:  # columns as they are
            n = len(class_names) if class_names is not None else len(present)
            return (
                tuple(range(n) if class_names is None else class_names),
                numbers,
                None if test is None else as_labels(test, "test"),
            )
        train = numbers.tolist()
    elif not len(train):
        raise DataError("there are no training labels: there must be one for each input")
    labels = by_name(train, "training")
    names = classes_of(labels) if class_names is None else list(class_names)
    check_classes(len(names))
    trained = places(labels, names, "training")
    tested = None if test is None else places(by_name(test, "test"), names, "test")
    if tested is not None and not len(tested):
        raise DataError("there are no test labels: there must be one for each input")
    return tuple(names), trained, tested


def _named(class_names: Sequence[str]) -> list[str]:
    """One name for each class; DataError where one stands twice, or they are no list."""
    listed = not isinstance(class_names, str | set | dict)
    names = np.asarray(class_names, dtype=object).reshape(-1).tolist() if listed else []
    if not names or len(set(map(str, names))) < len(names):
        raise DataError(f"class names are {class_names!r:.60}: a list of names is needed, one for each class")
    return names


def split(
    name: str,
    arrays: Arrays,
    transform: Transform,
    *,
    classes_per_task: ClassesPerTask,
    class_order_seed: int | None,
    limit_per_class: int | None,
    class_order: Sequence[Name] | None = None,
) -> Stream:
    """As `from_arrays`, for what this package has read itself: where sorted by class, tasks are views, not copies."""
    if arrays.note:
        warnings.warn(arrays.note, DataWarning, stacklevel=3)
    test = None
    if len(arrays.test_labels):
        test = Samples(as_inputs(arrays.test_inputs, "test"), as_labels(arrays.test_labels, "test"))
    return assemble(
        name,
        Samples(as_inputs(arrays.train_inputs, "training"), as_labels(arrays.train_labels, "training")),
        test,
        arrays.class_names,
        transform,
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        class_order=class_order,
        limit_per_class=limit_per_class,
        share=True,
    )


def assemble(
    name: str,
    train: Samples,
    test: Samples | None,
    names: Sequence[Name],
    transform: Transform,
    *,
    classes_per_task: ClassesPerTask,
    class_order_seed: int | None,
    class_order: Sequence[Name] | None,
    limit_per_class: int | None,
    share: bool,
) -> Stream:
    """A stream of samples whose labels are places in `names`; the rest as of `from_arrays`.

    Args:
        share: whether tasks may be views of the inputs.
    """
    n_classes = len(names)
    check_classes(n_classes)
    given = [("training", train), *([] if test is None else [("test", test)])]
    for what, samples in given:
        check_size(samples, what)
    if test is not None:
        check_alike(train, test)
    for what, samples in given:
        check_labels(samples.labels, what, {k: str(name) for k, name in enumerate(names)})
    if limit_per_class is not None and not is_whole(limit_per_class):
        raise ConfigError(f"limit per class is {limit_per_class!r:.40}: it must be at least 1, a whole number")
    columns_of_tasks = cut(n_classes, classes_per_task)
    transform.train(train.inputs[:1], torch.Generator())  # refuses what it does not fit before any work
    order = ordered(names, class_order, class_order_seed)
    column = torch.empty(n_classes, dtype=torch.int64)
    column[order] = torch.arange(n_classes)
    splits = [Samples(samples.inputs, column[samples.labels]) for _, samples in given]
    called = tuple(names[k] for k in order.tolist())
    tasks = []
    for t, classes in enumerate(columns_of_tasks):
        task_train, *task_test = (_select(samples, classes, limit_per_class, share) for samples in splits)
        held_out = task_test[0] if task_test else None
        tasks.append(Task(t, classes, task_train, held_out, transform, column_names=called))
    return Stream(
        name=name,
        tasks=tuple(tasks),
        n_classes=n_classes,
        input_shape=tuple(train.inputs.shape[1:]),
        class_names=tuple(map(str, called)),
        fingerprint=_fingerprint(tasks),
    )


def check_classes(count: int) -> None:
    """Raise DataError if there are more than `MAX_CLASSES`."""
    if count > MAX_CLASSES:
        raise DataError(f"there are more than {MAX_CLASSES} classes: at most so many are allowed")


def check_size(samples: Samples, what: str) -> None:
    """Raise DataError unless there is a label for each input."""
    n = len(samples.inputs)
    if n != len(samples):
        raise DataError(f"{n} {what} inputs but {len(samples)} {what} labels: there must be one label for each")


def check_alike(train: Samples, test: Samples) -> None:
    """Raise DataError unless test samples are of the dtype and shape of training samples."""
    shapes = [f"{str(s.inputs.dtype).removeprefix('torch.')} {tuple(s.inputs.shape[1:])}" for s in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(f"training samples are {shapes[0]} but test samples {shapes[1]}: they must agree")


def _as_tensor(array: Any, what: str, needed: str) -> Tensor:
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_quantized or array.is_meta:
            raise DataError(f"{what} are a tensor that is sparse, quantized or without memory: {needed}")
        return array.detach()
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise DataError(f"{what} are masked in part, which has no effect here: fill in values, or leave samples out")
    try:
        values = np.asarray(array)
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise DataError(f"{what} are not a rectangular array of numbers: {one_line(error)}") from None
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what} have dtype {values.dtype}: {needed}")
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:  # torch has few operations for these
        if values.size and int(values.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{what} hold numbers of 2^63 and more: {needed}")
        values = values.astype(np.int64)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    native = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native))


def stored(array: Any, what: str) -> Inputs:
    """As `as_inputs`, but what lies in a file (`np.memmap`) or is read lazily stays where it is.

    Raises:
        DataError: as `as_inputs`; values that are not finite only when they are read.
    """
    if isinstance(array, Lazy):
        return array
    if not isinstance(array, np.memmap):
        return as_inputs(array, what)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} inputs have dtype {array.dtype}: {_INPUTS}")
    if array.ndim < 2 or array.size == 0:
        raise DataError(f"{what} inputs have shape {tuple(array.shape)}: a non-empty [N, ...] is needed")
    return Lazy(Mapped(array), what)


EXACT = 2**24
"""Whole numbers below it are float32's, each."""

_INPUTS = "allowed are uint8, other integers and floating point"


def as_inputs(array: ArrayLike, what: str) -> Tensor:
    """uint8 as it is, other numbers as float32 [N, ...]; DataError where they are not finite, or no array."""
    inputs = _as_tensor(array, f"{what} inputs", _INPUTS)
    if inputs.dim() < 2 or inputs.numel() == 0:
        raise DataError(f"{what} inputs have shape {tuple(inputs.shape)}: a non-empty [N, ...] is needed")
    if inputs.dtype == torch.uint8:
        return inputs
    if inputs.is_complex():
        raise DataError(f"{what} inputs are {inputs.dtype}: {_INPUTS}")
    whole = not inputs.is_floating_point()
    inputs = inputs.to(torch.float32)  # integers of a sensor as they are: their scale is the transform's
    if whole and (most := float(inputs.abs().max())) >= EXACT:
        raise DataError(
            f"{what} inputs hold whole numbers up to {most:.6g}, and are kept as float32, which tells those below"
            f" {EXACT:,} apart: give them scaled, as floating point"
        )
    finite = torch.isfinite(inputs).flatten(1).all(1)
    if not bool(finite.all()):
        first = int(torch.nonzero(~finite)[0])
        raise DataError(f"{what} inputs hold NaN or infinite values, the first in sample {first}: all must be finite")
    return inputs


def as_labels(array: Any, what: str) -> Tensor:
    """int64 [N] on the CPU of what a user gives, N >= 1; DataError where that cannot be."""
    needed = "integers of shape [N] are needed, 0 <= label < the number of classes"
    labels = _as_tensor(array, f"{what} labels", needed)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{what} labels are {labels.dtype} of shape {tuple(labels.shape)}: {needed}")
    if len(labels) == 0:
        raise DataError(f"there are no {what} labels: there must be one for each input")
    numbers = labels.to("cpu", torch.int64)
    if labels.dtype == torch.uint64 and bool((numbers < 0).any()):
        raise DataError(f"{what} labels hold numbers of 2^63 and more: {needed}")
    return numbers


def check_labels(labels: Tensor, what: str, names: Mapping[int, str], *, all_needed: bool = True) -> None:
    """Raise DataError unless labels, int64 [N], are all among those of `names` and, `all_needed`, none is missing."""
    wrong = torch.nonzero(~torch.isin(labels, torch.tensor(list(names)))).flatten()
    if len(wrong):
        raise DataError(
            f"{what} label {int(labels[wrong[0]])} of sample {int(wrong[0])} is out of range:"
            f" allowed are {short(names)}"
        )
    present = set(torch.unique(labels).tolist())
    for k, name in names.items() if all_needed else ():
        if k not in present:
            hint = f"; labels start at 0, yours at {min(present)}" if k == 0 and what == "training" else ""
            raise DataError(f"class {name!r} has no {what} samples: every class needs at least one{hint}")


def _select(samples: Samples, classes: tuple[int, ...], limit: int | None, share: bool) -> Samples:
    """The samples of these classes in their original order, at most `limit` of each; a view if `share` and possible."""
    labels = samples.labels
    keep = (labels >= classes[0]) & (labels <= classes[-1])
    if limit is not None:
        for k in classes:
            keep[torch.nonzero(labels == k).flatten()[limit:]] = False
    index = torch.nonzero(keep).flatten()
    first, last = int(index[0]), int(index[-1])
    inputs = samples.inputs
    if share and isinstance(inputs, Tensor) and last - first + 1 == len(index):
        return Samples(inputs[first : last + 1], labels[index])
    chosen = select(inputs, index)
    return Samples(chosen.contiguous() if isinstance(chosen, Tensor) else chosen, labels[index])


def _fingerprint(tasks: Sequence[Task]) -> str:
    """Over all inputs and labels; of what is read lazily over all labels and `WITNESSES` samples a split."""
    digest = hashlib.sha256()
    for task in tasks:
        for samples in filter(None, (task.train, task.test)):
            inputs = samples.inputs
            digest.update(f"{inputs.dtype} {tuple(inputs.shape)}".encode())
            if isinstance(inputs, Lazy):
                digest.update(b"lazy")
                inputs = inputs.witness()
            for tensor in (inputs, samples.labels):
                digest.update(tensor.cpu().numpy().data.cast("B"))
    return digest.hexdigest()
