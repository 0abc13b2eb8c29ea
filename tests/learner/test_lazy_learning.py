"""Data that is read lazily trains to the same bits as the same data in memory, and goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from toys import Net, adam, blobs

from sparcl import Learner, SparCL, kernels, methods, streams
from sparcl.errors import CheckpointError, DataError
from sparcl.run.measured import model_sha256
from sparcl.streams.lazy import Lazy

BACKEND = "native" if kernels.available() else "reference"


def whole() -> tuple[np.ndarray, np.ndarray]:
    (task,) = blobs(tasks=2, per_class=12).merged()
    return task.train.inputs.numpy(), task.train.labels.numpy()


def stream(kind: str, path: Path, **options: Any) -> streams.Stream:
    x, y = whole()
    given: dict[str, Any] = {"classes_per_task": [1, 3], "transform": streams.Transform(crop_padding=1, flip=True)}
    if kind == "memory":
        return streams.from_arrays(x, y, x, y, **given, **options)
    if kind == "memmap":
        np.save(path / "x.npy", x)
        x = np.load(path / "x.npy", mmap_mode="r")
        return streams.from_arrays(x, y, x, y, **given, **options)
    pairs: Any = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    pairs = DataLoader(pairs, batch_size=3, shuffle=True) if kind == "loader" else pairs
    return streams.from_arrays(pairs, None, pairs, None, **given, **options)


def made(method: str = "derpp", sparse: bool = True, **options: Any) -> Learner:
    kind = methods.METHODS[method]
    the_method = kind(12) if issubclass(kind, methods.RehearsalMethod) else kind()
    sparsifier = SparCL(0.5) if sparse else None
    backend = BACKEND if sparse else "reference"
    settings = {"optimizer": adam, "epochs": 3, "batch_size": 4, "backend": backend, **options}
    return Learner(Net(), the_method, sparsifier, **settings)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns_the_same_bits(tmp_path: Path, method: str) -> None:
    ends = []
    for kind in ("memory", "memmap", "dataset", "loader"):
        learner, data = made(method, methods.METHODS[method].masks == "moving"), stream(kind, tmp_path)
        assert isinstance(data[0].train.inputs, Lazy) == (kind != "memory")
        for task in data.merged() if learner.method.learns_all_at_once else data:
            learner.learn(task)
        accuracy = learner.evaluate(data.tasks)
        asked = learner.predict(data[1].test.inputs, task=0).probabilities
        ends.append((model_sha256(learner.model), accuracy, asked.tolist()))
    assert all(end == ends[0] for end in ends)


def test_a_lazily_read_task_goes_on_from_a_checkpoint_and_other_data_is_refused(tmp_path: Path) -> None:
    whole_run = made()
    for task in stream("memory", tmp_path):
        whole_run.learn(task)

    data = stream("memmap", tmp_path)
    first = made()

    def stop(event: str, figures: dict[str, Any]) -> None:
        if event == "step.end" and figures["task"] == 1 and figures["epoch"] == 1:
            first.save(tmp_path / "saved")
            raise KeyboardInterrupt

    first.observers.append(stop)
    first.learn(data[0])
    with pytest.raises(KeyboardInterrupt):
        first.learn(data[1])
    again = Learner.load(tmp_path / "saved", Net(), optimizer=adam, backend=BACKEND)
    x, y = whole()
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "x.npy", x + 1)
    other = np.load(tmp_path / "other" / "x.npy", mmap_mode="r")
    with pytest.raises(CheckpointError, match="task 2 has other data"):
        again.learn(streams.from_arrays(other, y, classes_per_task=[1, 3])[1])
    again = Learner.load(tmp_path / "saved", Net(), optimizer=adam, backend=BACKEND)
    again.learn(data[1])
    assert model_sha256(again.model) == model_sha256(whole_run.model)


def test_a_value_that_is_not_finite_ends_the_task_in_one_line(tmp_path: Path) -> None:
    x, y = whole()
    x[40] = np.inf
    np.save(tmp_path / "x.npy", x)
    learner = made("finetune", sparse=False)
    task = streams.make_task(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
    task = streams.Task(0, task.classes, task.train)
    with pytest.raises(DataError, match="training inputs hold NaN or infinite values in sample 40"):
        learner.learn(task)
    assert all(bool(torch.isfinite(p).all()) for p in learner.model.parameters())


def test_names_of_a_stream_answer(tmp_path: Path) -> None:
    x, y = whole()
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    data = streams.from_arrays(x, names, classes_per_task=2, class_order=["dog", "ant", "cat", "bee"])
    learner = made("er", epochs=30)
    for task in data:
        learner.learn(task)
    assert learner.predict(x).names == ("dog", "ant", "cat", "bee")
    assert learner.predict(x[:4]).labels == names[:4].tolist()
    learner.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved", Net(), optimizer=adam, backend=BACKEND)
    assert again.predict(x).labels == learner.predict(x).labels


def test_numbers_from_one_answer_as_they_were_given() -> None:
    x, y = whole()
    learner = made("er", epochs=30)
    for task in streams.from_arrays(x, y + 1, classes_per_task=2, class_order=[4, 2, 3, 1]):
        learner.learn(task)
    answered = learner.predict(x)
    assert np.mean(np.array(answered.labels) == y + 1) > 0.8
    assert answered.columns.tolist() == [[4, 2, 3, 1].index(name) for name in answered.labels]
