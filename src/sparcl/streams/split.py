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
from sparcl.streams.augment import How, Transform
from sparcl.streams.task import Samples, Stream, Task, short

MAX_CLASSES = 1 << 15
"""The largest image data sets have 22,000: more are a mistake, and each would be looked for in every sample."""

ArrayLike = npt.NDArray[Any] | Tensor


@dataclass(frozen=True)
class Arrays:
    """A whole data set in memory, before it is split.

    Attributes:
        train_inputs, test_inputs: uint8 [N, C, H, W] as decoded.
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
    train_inputs: ArrayLike,
    train_labels: ArrayLike,
    test_inputs: ArrayLike,
    test_labels: ArrayLike,
    *,
    classes_per_task: int = 2,
    class_order_seed: int | None = None,
    limit_per_class: int | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transform | None = None,
    augment: How | None = None,
    name: str = "arrays",
) -> Stream:
    """Make a stream of your own NumPy arrays or tensors.

    Args:
        train_inputs, test_inputs: uint8 or floating [N, ...]; images as [N, C, H, W]. Other integers (a sensor's
            int16) become float32 as they are.
        train_labels, test_labels: integers [N], 0 <= label < the number of classes.
        classes_per_task: must divide the number of classes.
        class_order_seed: shuffles the classes over the tasks; None keeps the natural order.
        limit_per_class: keep only the first so many training and so many test samples of a class.
        class_names: one for each class; None takes the labels themselves.
        transform: augmentation and normalisation; None only scales uint8 to [0, 1].
        augment: in place of the transform's crop and flip, see `Stream.augmented`; None leaves these.
        name: what the records call the stream.

    Raises:
        DataError: sizes that do not match, a label out of range, a class without samples, NaN or infinite
            inputs, classes that do not divide into tasks, a task with a single training sample.
        ConfigError: an option outside its range, or a transform that does not fit the inputs.
    """
    train = Samples(as_inputs(train_inputs, "training"), as_labels(train_labels, "training"))
    test = Samples(as_inputs(test_inputs, "test"), as_labels(test_labels, "test"))
    n_classes = len(class_names) if class_names is not None else int(train.labels.max()) + 1
    if n_classes > len(train):  # also keeps one absurd label from becoming as many logits
        raise DataError(f"{len(train)} training samples cannot fill {n_classes} classes: each needs at least one")
    return _stream(
        name,
        train,
        test,
        tuple(class_names) if class_names is not None else tuple(str(k) for k in range(n_classes)),
        (transform or Transform()) if augment is None else (transform or Transform()).augmented(augment),
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        limit_per_class=limit_per_class,
        share=False,  # the user may change the arrays later
    )


def split(
    name: str,
    arrays: Arrays,
    transform: Transform,
    *,
    classes_per_task: int,
    class_order_seed: int | None,
    limit_per_class: int | None,
) -> Stream:
    """As `from_arrays`, for what this package has read itself: where sorted by class, tasks are views, not copies."""
    if arrays.note:
        warnings.warn(arrays.note, DataWarning, stacklevel=3)
    return _stream(
        name,
        Samples(as_inputs(arrays.train_inputs, "training"), as_labels(arrays.train_labels, "training")),
        Samples(as_inputs(arrays.test_inputs, "test"), as_labels(arrays.test_labels, "test")),
        arrays.class_names,
        transform,
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        limit_per_class=limit_per_class,
        share=True,
    )


def _stream(
    name: str,
    train: Samples,
    test: Samples,
    names: tuple[str, ...],
    transform: Transform,
    *,
    classes_per_task: int,
    class_order_seed: int | None,
    limit_per_class: int | None,
    share: bool,
) -> Stream:
    n_classes = len(names)
    check_classes(n_classes)
    for what, samples in (("training", train), ("test", test)):
        check_size(samples, what)
    check_alike(train, test)
    for what, samples in (("training", train), ("test", test)):
        check_labels(samples.labels, what, dict(enumerate(names)))
    _check_split(n_classes, classes_per_task, limit_per_class)
    transform.train(train.inputs[:1], torch.Generator())  # refuses what it does not fit before any work
    order = _class_order(n_classes, class_order_seed)
    column = torch.empty(n_classes, dtype=torch.int64)
    column[order] = torch.arange(n_classes)
    splits = [Samples(samples.inputs, column[samples.labels]) for samples in (train, test)]
    tasks = []
    for t in range(n_classes // classes_per_task):
        classes = tuple(range(t * classes_per_task, (t + 1) * classes_per_task))
        task_train, task_test = (_select(samples, classes, limit_per_class, share) for samples in splits)
        check_enough(t, len(task_train))
        tasks.append(Task(t, classes, task_train, task_test, transform))
    return Stream(
        name=name,
        tasks=tuple(tasks),
        n_classes=n_classes,
        input_shape=tuple(train.inputs.shape[1:]),
        class_names=tuple(names[k] for k in order.tolist()),
        fingerprint=_fingerprint(tasks),
    )


def check_classes(count: int) -> None:
    """Raise DataError if there are more than `MAX_CLASSES`."""
    if count > MAX_CLASSES:
        raise DataError(f"there are more than {MAX_CLASSES} classes: at most so many are allowed")


def check_enough(index: int, samples: int) -> None:
    """Raise DataError unless a task (from 0) has the two training samples that batch statistics need."""
    if samples < 2:
        raise DataError(f"task {index + 1} has {samples} training sample(s): every task needs 2 or more")


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


def _as_tensor(array: ArrayLike, what: str, needed: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    try:
        values = np.asarray(array)
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise DataError(f"{what} are not a rectangular array of numbers: {one_line(error)}") from None
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what} have dtype {values.dtype}: {needed}")
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:  # torch has few operations for these
        values = values.astype(np.int64)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    native = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native))


def as_inputs(array: ArrayLike, what: str) -> Tensor:
    """uint8 as it is, other numbers as float32 [N, ...]; DataError where they are not finite, or no array."""
    needed = "allowed are uint8, other integers and floating point"
    inputs = _as_tensor(array, f"{what} inputs", needed)
    if inputs.dim() < 2 or inputs.numel() == 0:
        raise DataError(f"{what} inputs have shape {tuple(inputs.shape)}: a non-empty [N, ...] is needed")
    if inputs.dtype == torch.uint8:
        return inputs
    if inputs.is_complex():
        raise DataError(f"{what} inputs are {inputs.dtype}: {needed}")
    inputs = inputs.to(torch.float32)  # integers of a sensor as they are: their scale is the transform's
    finite = torch.isfinite(inputs).flatten(1).all(1)
    if not bool(finite.all()):
        first = int(torch.nonzero(~finite)[0])
        raise DataError(f"{what} inputs hold NaN or infinite values, the first in sample {first}: all must be finite")
    return inputs


def as_labels(array: ArrayLike, what: str) -> Tensor:
    """int64 [N] on the CPU of what a user gives, N >= 1; DataError where that cannot be."""
    needed = "integers of shape [N] are needed, 0 <= label < the number of classes"
    labels = _as_tensor(array, f"{what} labels", needed)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{what} labels are {labels.dtype} of shape {tuple(labels.shape)}: {needed}")
    if len(labels) == 0:
        raise DataError(f"there are no {what} labels: there must be one for each input")
    return labels.to("cpu", torch.int64)


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
            hint = f"; labels start at 0, yours at {min(present)}" if k == 0 else ""
            raise DataError(f"class {name!r} has no {what} samples: every class needs at least one{hint}")


def _check_split(n_classes: int, classes_per_task: int, limit_per_class: int | None) -> None:
    if limit_per_class is not None and limit_per_class < 1:
        raise ConfigError(f"limit per class is {limit_per_class}: it must be at least 1")
    divisors = [k for k in range(1, n_classes + 1) if n_classes % k == 0]
    if classes_per_task not in divisors:
        allowed = ", ".join(map(str, divisors))
        raise DataError(f"{n_classes} classes do not split into tasks of {classes_per_task}: allowed are {allowed}")


def _class_order(n_classes: int, seed: int | None) -> Tensor:
    """int64 [n_classes]: the k-th entry is the original label of column k."""
    if seed is None:
        return torch.arange(n_classes)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"class order seed is {seed}: allowed are 0 to 2^63 - 1")
    return torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed))


def _select(samples: Samples, classes: tuple[int, ...], limit: int | None, share: bool) -> Samples:
    """The samples of these classes in their original order, at most `limit` of each; a view if `share` and possible."""
    labels = samples.labels
    keep = (labels >= classes[0]) & (labels <= classes[-1])
    if limit is not None:
        for k in classes:
            keep[torch.nonzero(labels == k).flatten()[limit:]] = False
    index = torch.nonzero(keep).flatten()
    first, last = int(index[0]), int(index[-1])
    if share and last - first + 1 == len(index):
        return Samples(samples.inputs[first : last + 1], labels[index])
    return Samples(samples.inputs[index.to(samples.inputs.device)].contiguous(), labels[index])


def _fingerprint(tasks: Sequence[Task]) -> str:
    digest = hashlib.sha256()
    for task in tasks:
        for samples in filter(None, (task.train, task.test)):
            digest.update(f"{samples.inputs.dtype} {tuple(samples.inputs.shape)}".encode())
            for tensor in (samples.inputs, samples.labels):
                digest.update(tensor.cpu().numpy().data.cast("B"))
    return digest.hexdigest()
