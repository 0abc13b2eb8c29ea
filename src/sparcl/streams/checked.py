"""A task that a user made by hand: cast and refused as `from_arrays` casts and refuses, in the same words."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch

from sparcl.errors import DataError
from sparcl.streams.augment import check_transform
from sparcl.streams.split import as_labels, check_alike, check_labels, check_size, stored
from sparcl.streams.task import Samples, Task


def checked(task: Task) -> Task:
    """The task as `from_arrays` would have made it: tensors, uint8 or float32 inputs, int64 labels, classes a tuple.

    Test samples may be absent (None or empty): such a task can be learned, not evaluated on. There need not be some of
    each class: a task of a blurry stream is tested on the classes that were its own.

    Raises:
        DataError: no task at all, classes or labels that cannot be, a class without samples, sizes that do not match,
            NaN or infinite inputs, targets that are no classes (regression, several labels for a sample).
    """
    task = _numbered(task)
    try:
        classes = _classes(task.classes)
        if not _count(task.train):
            raise DataError("there are no training samples: one or more are needed")
        train = _split(task.train, "training", classes)
        test = _split(task.test, "test", classes, all_needed=False) if _count(task.test) else None
        if test is not None:
            check_alike(train, test)
    except DataError as error:
        raise _of(task, error) from None
    return replace(task, classes=classes, train=train, test=test)


def checked_test(task: Task) -> Task:
    """The task, its test samples as `checked` would have them; the training samples are not looked at.

    Raises:
        DataError: there are none, or they are not allowed.
    """
    task = _numbered(task)
    try:
        classes = _classes(task.classes)
        if not _count(task.test):
            raise DataError("there are no test samples to evaluate on: give the task some, or name other tasks")
        return replace(task, classes=classes, test=_split(task.test, "test", classes, all_needed=False))
    except DataError as error:
        raise _of(task, error) from None


def by_name(task: Task) -> Task:
    """A task of columns, which its stream names, as `make_task` would have made it: labels are places in `names`.

    Raises:
        DataError: labels or classes that cannot be, or a class without a name.
    """
    task = _numbered(task)
    try:
        classes = _classes(task.classes)
        if max(classes) >= len(task.column_names):
            raise DataError(f"class {max(classes)} has no name: the stream names {len(task.column_names)} classes")
        train, test = (
            _placed(samples, what, classes) if _count(samples) else None
            for samples, what in ((task.train, "training"), (task.test, "test"))
        )
        if train is None:
            raise DataError("there are no training samples: one or more are needed")
    except DataError as error:
        raise _of(task, error) from None
    names = tuple(task.column_names[k] for k in classes)
    return replace(task, classes=tuple(range(len(names))), train=train, test=test, names=names)


def _placed(samples: Any, what: str, classes: tuple[int, ...]) -> Samples:
    """Samples whose labels are columns, with their places in `classes` instead."""
    labels = as_labels(samples.labels, what)
    check_labels(labels, what, {k: str(k) for k in classes}, all_needed=False)
    columns, places = torch.tensor(classes).sort()
    return Samples(samples.inputs, places[torch.searchsorted(columns, labels)])


def _numbered(task: object) -> Task:
    """A task with a number, which the other refusals name, and a transform."""
    if not isinstance(task, Task):
        raise DataError(f"a {type(task).__name__} is no task: take one from a stream, or make a sparcl.streams.Task")
    try:
        index = operator.index(task.index)
    except TypeError:
        index = -1
    if index < 0:
        raise DataError(f"a task's index is {task.index!r:.40}: 0 for the first task, 1 for the second, ... is needed")
    check_transform(task.transform, f"task {index + 1}", DataError)
    return replace(task, index=index)


def _classes(given: Any) -> tuple[int, ...]:
    needed = "the columns of the logits that belong to the task are needed, each once, 0 or more"
    try:
        classes = tuple(operator.index(k) for k in given)
    except TypeError:
        raise DataError(f"classes are {given!r:.60}: {needed}") from None
    if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
        raise DataError(f"classes are {classes!r:.60}: {needed}")
    return classes


def _count(samples: Any) -> int:
    """Samples of a split; 0 where there is no split."""
    if samples is None:
        return 0
    if not isinstance(samples, Samples):
        raise DataError(f"samples are given as a {type(samples).__name__}: Samples(inputs, labels) is needed")
    try:
        return max(len(samples.inputs), len(samples.labels))
    except TypeError:
        raise DataError("inputs and labels are needed, an array or tensor [N, ...] each") from None


def _split(given: Any, what: str, classes: tuple[int, ...], *, all_needed: bool = True) -> Samples:
    samples = Samples(stored(given.inputs, what), as_labels(given.labels, what))
    check_size(samples, what)
    check_labels(samples.labels, what, {k: str(k) for k in classes}, all_needed=all_needed)
    return samples


def _of(task: Task, error: DataError) -> DataError:
    """The error, with the task's number in front unless it says that itself."""
    text, number = str(error), f"task {task.index + 1}"
    return DataError(text if text.startswith(number) else f"{number}: {text}")
