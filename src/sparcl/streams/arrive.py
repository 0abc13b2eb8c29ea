"""What arrived today, as a task: labels by name, in order of arrival."""

from __future__ import annotations

from typing import Any

from sparcl.errors import DataError
from sparcl.streams.augment import Transform, check_transform
from sparcl.streams.dataset import is_dataset, read_pairs
from sparcl.streams.labels import Labels, by_name, places
from sparcl.streams.split import stored
from sparcl.streams.task import Name, Samples, Task


def make_task(x: Any, y: Labels | None = None, test: Any = None, *, transform: Transform | None = None) -> Task:
    """A task of what is at hand: for a Learner whose head grows (`Learner(..., classes=())`), or that knows the names.

    Args:
        x: [N, ...], images as [N, C, H, W]: uint8, floating, or integers, which become float32 as they are. What lies
            in a file (`np.memmap`) is read batch by batch. Or a `torch.utils.data.Dataset` or `DataLoader` of (x, y).
        y: N labels, strings or whole numbers; any, in any order. A class is known by them ever after. None with a
            Dataset or DataLoader, which has its own.
        test: (x, y), or a Dataset or DataLoader, to evaluate on; its classes must be among the task's.
        transform: augmentation and normalisation; None only scales uint8 to [0, 1].

    Raises:
        DataError: sizes that do not match, NaN or infinite inputs, labels that are neither strings nor whole numbers
            (multi-label and regression targets), or a test label that is not among the training ones.
    """
    check_transform(transform := transform or Transform(), "make_task")
    names, train = _samples(x, y, "training", None)
    held_out = None
    if test is not None:
        if not is_dataset(test) and (not isinstance(test, tuple | list) or len(test) != 2):
            raise DataError(f"test samples are a {type(test).__name__}: (x, y), a Dataset or a DataLoader is needed")
        test_x, test_y = (test, None) if is_dataset(test) else test
        _, held_out = _samples(test_x, test_y, "test", names)
        if held_out.inputs.shape[1:] != train.inputs.shape[1:] or held_out.inputs.dtype != train.inputs.dtype:
            raise DataError(
                f"training samples are {list(train.inputs.shape[1:])} but test samples"
                f" {list(held_out.inputs.shape[1:])}: they must agree"
            )
    return Task(-1, tuple(range(len(names))), train, held_out, transform, tuple(names))


def _samples(x: Any, y: Labels | None, what: str, known: list[Name] | None) -> tuple[list[Name], Samples]:
    """Names in order of arrival (those `known`, where given), and the samples with their places among them."""
    if y is None:
        if not is_dataset(x):
            raise DataError(f"there are no {what} labels: give (x, y), or a Dataset or DataLoader of (x, y)")
        inputs, labels = read_pairs(x, what)
    else:
        inputs, labels = stored(x, what), by_name(y, what)
    if len(labels) != len(inputs):
        raise DataError(f"{len(inputs)} {what} inputs but {len(labels)} {what} labels: there must be one for each")
    names = list(dict.fromkeys(labels)) if known is None else known
    return names, Samples(inputs, places(labels, names, what))
