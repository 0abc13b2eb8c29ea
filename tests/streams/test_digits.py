import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from sparcl.errors import DataError
from sparcl.streams import seq_digits
from sparcl.streams.digits import read_digits


def test_five_tasks_of_two_digits_four_fifths_for_training():
    stream = seq_digits()
    assert (len(stream), stream.n_classes, stream.input_shape) == (5, 10, (1, 8, 8))
    assert sum(len(t.train) + len(t.test) for t in stream) == 1797
    for task in stream:
        for k in task.classes:
            train, test = (int((s.labels == k).sum()) for s in (task.train, task.test))
            assert test == (train + test) // 5


def test_grey_levels_fill_the_byte_and_are_scaled_to_one():
    task = seq_digits()[0]
    assert (int(task.train.inputs.min()), int(task.train.inputs.max())) == (0, 255)
    assert len(task.train.inputs.unique()) == 17
    out = task.transform.train(task.train.inputs, torch.Generator())
    assert (float(out.min()), float(out.max())) == (0.0, pytest.approx(1.0))


def test_no_image_is_in_both_splits_and_every_load_is_the_same():
    first, second = seq_digits(), seq_digits()
    assert first.fingerprint == second.fingerprint
    train = {image.numpy().tobytes() for task in first for image in task.train.inputs}
    test = [image.numpy().tobytes() for task in first for image in task.test.inputs]
    assert not train.intersection(test)


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install \"sparcl-edge\[demo\]\""):
        seq_digits()


def test_they_are_scikit_learns_own_which_is_not_imported(monkeypatch):
    asked = "import sys; from sparcl import streams; streams.seq_digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
    own = read_digits()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # it lies elsewhere: it is asked itself
    for mine, theirs in zip(vars(own).values(), vars(read_digits()).values(), strict=True):
        assert np.array_equal(mine, theirs)
