"""Inputs in another form than they were learned: the same pixels where that is certain, else one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparcl import Learner, methods, nn, streams
from sparcl.checkpoint import Store
from sparcl.errors import CheckpointError, DataError

X = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(24) % 4


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.ConvNet(4, channels=3, width=8)


def learned(method: methods.Method, x: Any = X, **options: Any) -> Learner:
    learner = Learner(network(), method, batch_size=8, backend="reference")
    learner.learn(streams.from_arrays(x, LABELS, **options)[0])
    return learner


def without_and_with_a_buffer(folder: Path, x: Any = X) -> list[Learner]:
    """As they were made, and as they were loaded again."""
    made = [learned(method, x) for method in (methods.ER(8), methods.Finetune())]
    return [*made, *(Learner.load(one.save(folder / one.method.name).parent, backend="reference") for one in made)]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(np.float32) / 255,
        lambda x: x / 255,
        lambda x: torch.from_numpy(x).to(torch.float64) / 255,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(">u2"),
        lambda x: torch.from_numpy(x).int(),
        lambda x: x.tolist(),
    ],
)
def test_the_same_pixels_have_the_same_answer_in_any_form(form: Callable[[Any], Any], tmp_path: Path) -> None:
    for one in without_and_with_a_buffer(tmp_path):
        expected = one.predict(X).probabilities
        torch.testing.assert_close(one.predict(form(X)).probabilities, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (X.astype(np.float32), "new inputs hold values from 0 to 255: the network learned pixels, whole from 0 to 255"),
        (X / 255 - 0.5, "new inputs hold values from -0.5 to 0.5: the network learned pixels"),
        (X.astype(np.int64) + 1, "new inputs hold values from 1 to 256: the network learned pixels"),
        (X.astype(np.int8), "new inputs hold values from -128 to 127"),
        (X > 9, "new inputs are truth values: the network learned pixels"),
        (torch.from_numpy(X) > 9, "new inputs are truth values"),
    ],
)
def test_what_would_be_taken_for_other_pixels_is_one_line(given: Any, told: str, tmp_path: Path) -> None:
    for one in without_and_with_a_buffer(tmp_path):
        with pytest.raises(DataError, match=told) as caught:
            one.predict(given)
        assert "\n" not in str(caught.value)


def test_pixels_to_what_learned_numbers_are_refused(tmp_path: Path) -> None:
    for one in without_and_with_a_buffer(tmp_path, X / 255):
        with pytest.raises(DataError, match=r"new inputs are uint8, and float32 was learned.*scaled to \[0, 1\]"):
            one.predict(X)
        assert len(one.predict(X.astype(np.int64))) == 24  # numbers are numbers


def test_a_file_that_is_not_read_whole_must_hold_what_was_learned(tmp_path: Path) -> None:
    learner = learned(methods.Finetune())
    for array in (X, X / 255):
        np.save(tmp_path / "x.npy", array)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        if array is X:
            assert torch.equal(learner.predict(mapped).probabilities, learner.predict(X).probabilities)
            continue
        with pytest.raises(DataError, match="new inputs are float32, and uint8 was learned"):
            learner.predict(mapped)


class Halved(streams.Normalize):
    """Knows bytes alone."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs / 510


def test_a_transform_of_ones_own_is_given_bytes_alone() -> None:
    learner = learned(methods.ER(8), transform=streams.Transform(Halved()))
    expected = learner.predict(X).probabilities
    assert torch.equal(learner.predict(X.astype(np.int32)).probabilities, expected)
    with pytest.raises(DataError, match="of your own class, which may know uint8 alone: give the inputs as uint8"):
        learner.predict(X / 255)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, list])
def test_inputs_stored_otherwise_than_they_were_learned_are_refused(dtype: Any, tmp_path: Path) -> None:
    given = X.tolist() if dtype is list else X.astype(dtype)
    for method in (methods.ER(8), methods.Finetune()):
        learner = Learner(network(), method, batch_size=8)
        learner.learn(streams.from_arrays(X, np.arange(24) % 4)[0])
        loaded = Learner.load(learner.save(tmp_path / method.name).parent)
        for one in (learner, loaded):
            with pytest.raises(DataError, match="are float32, and uint8 was learned"):
                one.observe(given, np.arange(24) % 4)
        with pytest.raises(DataError, match="the inputs of task 2 are float32, and uint8 was learned"):
            learner.learn(streams.from_arrays(given, np.arange(24) % 4).tasks[1])
        tested = streams.from_arrays(given, np.arange(24) % 4, given, np.arange(24) % 4)
        with pytest.raises(DataError, match="the test inputs of task 1 are float32, and uint8 was learned"):
            learner.evaluate(tested)


def test_a_checkpoint_says_how_samples_were_stored_and_may_not_lie(tmp_path: Path) -> None:
    state = learned(methods.Finetune()).checkpoint_state()
    assert state["learner"].pop("stored_as") == "uint8"
    Store(tmp_path / "old").save(1, state)
    assert len(Learner.load(tmp_path / "old").predict(X / 255)) == 24  # an earlier version did not say it
    state["learner"]["stored_as"] = "int64"
    Store(tmp_path / "bent").save(1, state)
    with pytest.raises(CheckpointError, match="stored as 'int64'; allowed: uint8, float32"):
        Learner.load(tmp_path / "bent")
