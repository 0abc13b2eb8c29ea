"""PyTorch's global generators: the Learner lends its own, and the caller's are as they were."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Net, adam, blobs, make_learner

from sparcl import Learner
from sparcl.checkpoint import tree
from sparcl.errors import TrainingError
from sparcl.methods import DERpp
from sparcl.nn import ConvNet
from sparcl.run.build import learner as build_learner
from sparcl.run.experiment import Experiment
from sparcl.seeds import Generators
from sparcl.streams import seq_digits


class Drawing(Net):
    """A model that draws in evaluation, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 5.0 * torch.rand(len(x), 1) * torch.rand(4)


@contextlib.contextmanager
def untouched() -> Any:
    torch.manual_seed(77)
    torch.rand(3)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_callers_generator_is_given_back(backend: str, tmp_path: Path) -> None:
    stream = blobs(flip=True)
    model = Net(dropout=0.2)
    with untouched():
        learner = make_learner(model=model, backend=backend)
    with untouched():
        learner.learn(stream[0])
    with untouched():
        learner.evaluate(stream)
    with untouched():
        learner.save(tmp_path)
    fresh = Net(dropout=0.2)
    with untouched():
        loaded = Learner.load(tmp_path, fresh, optimizer=adam, backend=backend)
    with untouched():
        loaded.learn(stream[1])


def test_a_model_of_ours_is_built_and_loaded_beside_the_callers_generator(tmp_path: Path) -> None:
    Learner(ConvNet(4, 2, 8), DERpp(20), epochs=1).save(tmp_path)
    with untouched():
        Learner.load(tmp_path)
    stream = seq_digits(limit_per_class=4)
    experiment = Experiment("seq-digits", limit_per_class=4, epochs=1).resolve()
    with untouched():
        first = build_learner(experiment, stream)
    second = build_learner(experiment, stream)
    assert tree.difference(first.checkpoint_state(), second.checkpoint_state()) is None


def test_it_is_given_back_when_training_ends_in_an_error() -> None:
    learner = make_learner(model=Net(dropout=0.2), optimizer=None, lr=1e12, epochs=20, sparsifier=None)
    with untouched(), pytest.raises(TrainingError):
        learner.learn(blobs()[0])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_model_with_dropout_saved_in_mid_task_goes_on_to_the_same_bits_whatever_is_drawn_between(
    tmp_path: Path, backend: str
) -> None:
    stream = blobs(flip=True)
    options: dict[str, Any] = {"backend": backend, "checkpoint_dir": tmp_path, "checkpoint_every": 7}
    whole = make_learner(model=Net(dropout=0.5), **options)
    for task in stream:
        whole.learn(task)
    for folder in sorted(tmp_path.glob("step-*")):
        torch.manual_seed(3)
        again = Learner.load(folder, Net(dropout=0.5, seed=4), optimizer=adam, backend=backend)
        assert again.position is not None
        torch.manual_seed(0)
        torch.rand(5)
        random.seed(5)
        np.random.seed(5)
        for task in stream[again.learned :]:
            again.learn(task)
            torch.rand(7)
        assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None


def test_a_model_that_draws_while_evaluated_answers_the_same_each_time_and_trains_the_same() -> None:
    stream = blobs()
    digests = []
    for looks in (0, 3):
        learner = make_learner(model=Drawing(), sparsifier=None)

        def look(event: str, _: Any, learner: Learner = learner, looks: int = looks) -> None:
            for _ in range(looks if event == "step.end" else 0):
                learner.evaluate(stream[:1])

        learner.observers.append(look)
        learner.learn(stream[0])
        digests.append(learner.checkpoint_state())
        assert learner.evaluate() == learner.evaluate()
    assert tree.difference(*digests) is None


def test_dropout_obeys_the_seed_alone() -> None:
    states = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        learner = make_learner(model=Net(dropout=0.5))
        torch.manual_seed(outside)
        learner.learn(blobs()[0])
        states.append(learner.checkpoint_state())
    assert tree.difference(*states) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_its_generator_is_given_back_as_well() -> None:
    learner, task = make_learner(model=Net(dropout=0.5), device="cuda"), blobs()[0]
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    learner.learn(task)
    learner.evaluate()
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_no_two_sources_of_randomness_draw_the_same() -> None:
    """Replay that follows the augmentation, or ranking batches that follow the order, would be no draw of their own."""
    made = Generators(7, torch.device("cpu"))
    draws = {name: tuple(torch.randperm(50, generator=getattr(made, name)).tolist()) for name in made.NAMES}
    with made.lent():
        draws["torch"] = tuple(torch.randperm(50).tolist())
    assert len(set(draws.values())) == len(draws)
