"""What arrived today, as a task: labels by name, in order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparcl.errors import DataError
from sparcl.streams.augment import Transform
from sparcl.streams.split import ArrayLike, as_inputs
from sparcl.streams.task import Name, Samples, Task

Labels = Sequence[Name] | ArrayLike


def make_task(
    x: ArrayLike, y: Labels, test: tuple[ArrayLike, Labels] | None = None, *, transform: Transform | None = None
) -> Task:
    """A task of what is at hand: for a Learner whose head grows (`Learner(..., classes=())`), or that knows the names.

    Args:
        x: [N, ...], images as [N, C, H, W]: uint8, floating, or integers, which become float32 as they are.
        y: N labels, strings or whole numbers; any, in any order. A class is known by them ever after.
        test: (x, y) to evaluate on; its classes must be among the task's.
        transform: augmentation and normalisation; None only scales uint8 to [0, 1].

    Raises:
        DataError: sizes that do not match, NaN or infinite inputs, labels that are neither strings nor whole numbers
            (multi-label and regression targets), or a test label that is not among the training ones.
    """
    names, train = _samples(x, y, "training", None)
    if test is None:
        held_out = None
    else:
        _, held_out = _samples(*test, "test", names)
        if held_out.inputs.shape[1:] != train.inputs.shape[1:] or held_out.inputs.dtype != train.inputs.dtype:
            raise DataError(
                f"training samples are {list(train.inputs.shape[1:])} but test samples"
                f" {list(held_out.inputs.shape[1:])}: they must agree"
            )
    return Task(-1, tuple(range(len(names))), train, held_out, transform or Transform(), tuple(names))


def _samples(x: ArrayLike, y: Labels, what: str, known: list[Name] | None) -> tuple[list[Name], Samples]:
    """Names in order of arrival (those `known`, where given), and the samples with their places among them."""
    inputs = as_inputs(x, what)
    labels = by_name(y, what)
    if len(labels) != len(inputs):
        raise DataError(f"{len(inputs)} {what} inputs but {len(labels)} {what} labels: there must be one for each")
    names = list(dict.fromkeys(labels)) if known is None else known
    place = {name: k for k, name in enumerate(names)}
    if (new := next((name for name in labels if name not in place), None)) is not None:
        raise DataError(f"{what} label {new!r} is not among the task's classes: {', '.join(map(str, names))[:100]}")
    return names, Samples(inputs, torch.tensor([place[name] for name in labels], dtype=torch.int64))


def by_name(y: Labels, what: str) -> list[Name]:
    """Labels as strings and Python's integers.

    Raises:
        DataError: they are not one string or whole number for each sample.
    """
    needed = "one string or whole number for each sample is needed (no multi-label or regression targets)"
    values: Any = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    if not isinstance(values, list | tuple):  # a list may mix strings and numbers, which NumPy would make strings of
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind not in "iuUO":
            raise DataError(f"{what} labels are {values.dtype} of shape {tuple(values.shape)}: {needed}")
        values = values.tolist()
    labels = [int(k) if isinstance(k, np.integer) else k for k in values]
    for k in labels:
        if not isinstance(k, str | int) or isinstance(k, bool):
            raise DataError(f"{what} label {k!r:.40} is a {type(k).__name__}: {needed}")
    return labels
