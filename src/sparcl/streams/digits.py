"""seq-digits: scikit-learn's 1,797 handwritten digits, 8 × 8; real data that needs no network."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparcl.errors import DataError
from sparcl.streams.augment import Transform
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.split import Arrays, split
from sparcl.streams.task import Name, Stream


def seq_digits(
    *,
    classes_per_task: ClassesPerTask = 2,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
) -> Stream:
    """Ten digits in five tasks; inputs uint8 [N, 1, 8, 8]; no augmentation.

    Raises:
        DataError: scikit-learn, which carries the images, is not installed.
    """
    return split(
        "seq-digits",
        read_digits(),
        Transform(),
        classes_per_task=classes_per_task,
        class_order_seed=class_order_seed,
        class_order=class_order,
        limit_per_class=limit_per_class,
    )


def read_digits() -> Arrays:
    """Scale the 17 grey levels to uint8; every fifth image of a class is a test image (80/20, stratified)."""
    images, labels = _digits()
    inputs = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for k in range(10):
        is_test[np.flatnonzero(labels == k)[4::5]] = True
    return Arrays(
        train_inputs=inputs[~is_test],
        train_labels=labels[~is_test],
        test_inputs=inputs[is_test],
        test_labels=labels[is_test],
        class_names=tuple(str(k) for k in range(10)),
    )


def _digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Grey levels 0 to 16 [1797, 64] and labels, as `sklearn.datasets.load_digits` gives them.

    From its file where that lies at its usual place: to import scikit-learn takes 150 MB and more time than the data.
    """
    found = importlib.util.find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            with gzip.open(file, "rt", encoding="ascii") as lines:
                table = np.loadtxt(lines, delimiter=",")
            return table[:, :-1], table[:, -1]
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError('seq-digits needs scikit-learn: pip install "sparcl-edge[demo]"') from error
    images, labels = load_digits(return_X_y=True)
    return images, labels
