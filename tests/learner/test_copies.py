"""A copy of a Learner goes on by itself; what is no copy, a pickle, is refused in one line."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nn.native import needs_native
from toys import Net, blobs, make_learner

from sparcl import Learner, methods
from sparcl.errors import ConfigError


def test_a_copy_saves_its_own_state(tmp_path: Path) -> None:
    learner = Learner(Net(), methods.ER(4), batch_size=8, checkpoint_dir=tmp_path, checkpoint_every=3)
    learner.learn(blobs()[0])
    copied = copy.deepcopy(learner)
    copied.learn(blobs()[1])
    assert Learner.load(tmp_path, Net()).steps == copied.steps - copied.steps % 3 > learner.steps


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_a_copy_and_its_original_go_on_to_the_same_bits_and_leave_each_other_alone(backend: str) -> None:
    learner, (first, second) = make_learner(backend=backend, average=0.2), blobs()
    learner.learn(first)
    copied = copy.deepcopy(learner)
    before = [p.detach().clone() for p in learner.model.parameters()]
    copied.learn(second)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
    learner.learn(second)
    assert all(torch.equal(a, b) for a, b in zip(copied.model.parameters(), learner.model.parameters(), strict=True))
    assert torch.equal(*(one.predict(second.test.inputs).probabilities for one in (learner, copied)))


@pytest.mark.parametrize(
    "keep", [pickle.dumps, copy.copy, lambda one: torch.save(one, io.BytesIO()), lambda one: pickle.dumps(one.method)]
)
def test_a_learner_is_not_pickled_or_copied_in_part_and_one_line_says_what_to_do(keep: Callable[[Any], Any]) -> None:
    with pytest.raises(ConfigError, match=r"not pickled: use learner.save\(folder\) and Learner.load") as caught:
        keep(make_learner())
    assert "\n" not in str(caught.value)


class Writing:
    """An observer with an open file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        del figures
        self.file.write(event)


def test_what_cannot_be_copied_is_named_and_the_learner_goes_on(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "log")
    learner = make_learner(observers=[writing])
    with pytest.raises(ConfigError, match=r"cannot be copied: cannot pickle '_io.TextIOWrapper' object; use learner"):
        copy.deepcopy(learner)
    learner.learn(blobs()[0])
    writing.file.close()
    assert learner.learned == 1


def test_a_copy_from_inside_a_task_is_refused() -> None:
    told: list[str] = []

    def look(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end" and not told:
            with pytest.raises(ConfigError, match="copied before or after learn and observe") as caught:
                copy.deepcopy(learner)
            told.append(str(caught.value))

    learner = make_learner(observers=[look])
    learner.learn(blobs()[0])
    assert told
