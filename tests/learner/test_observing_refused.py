"""What `Learner.observe` refuses, in one line and with nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from observed import BORDERLESS, batches, learner

import sparcl
from sparcl import Learner, methods, sparsity
from sparcl.checkpoint import Store, tree
from sparcl.errors import CheckpointError, ConfigError, DataError, SparclError, TrainingError
from sparcl.sparsity import DDR, SparCL


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in BORDERLESS])
def test_a_method_that_needs_borders_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"method {name} needs the borders.*: finetune, er, er-ace, der, derpp$"):
        learner(methods.find(name)()).observe(*next(batches()))


class OwnER(methods.ER):
    """Who knows what it looks at."""

    name = "own-er"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: learner(sparsifier=sparsity.SET(0.5)), "sparsifier set needs the borders of tasks"),
        (lambda: learner(sparsifier=sparsity.RigL(0.5)), "sparsifier rigl needs the borders"),
        (lambda: learner(sparsifier=sparsity.SNIP(0.5)), "sparsifier snip needs the borders"),
        (lambda: learner(sparsifier=DDR()), "sparsifier ddr needs the borders"),
        (lambda: learner(sparsifier=SparCL(0.5, samples=0.3)), "samples=0.3 removes samples.*use samples=0"),
        (lambda: learner(methods.ER(20, single_head=True)), "single_head looks at a task's own classes"),
        (lambda: learner(OwnER(20)), "method own-er needs the borders"),
    ],
)
def test_settings_that_need_borders_are_refused(make: Callable[[], Learner], said: str) -> None:
    model = make()
    before = model.checkpoint_state()
    with pytest.raises(ConfigError, match=said):
        model.observe(*next(batches()))
    assert tree.difference(before, model.checkpoint_state()) is None


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(3, 2, 6, 6), [0, 1, 4], "label 4 is not allowed: the model has 4 logits, 0 to 3"),
        (torch.zeros(3, 2, 6, 6), [0, 1, -1], "label -1 is not allowed"),
        (torch.zeros(3, 2, 6, 6), [0, 1], "3 arriving inputs but 2 arriving labels"),
        (torch.zeros(3, 2, 6, 6), ["a", "b", "c"], "arriving labels have dtype"),
        (torch.zeros(3, 2, 6, 6), [0.5, 1.0, 2.0], "arriving labels are"),
        (torch.zeros(0, 2, 6, 6), [], "non-empty"),
        (torch.full((2, 2, 6, 6), float("nan")), [0, 1], "NaN or infinite"),
        (torch.zeros(3, 5, 6, 6), [0, 1, 2], "the model does not take|must agree"),
        (torch.zeros(2, 6, 6), "cat", "arriving labels have dtype"),
        (torch.zeros(3, 2, 6, 6), 1, r"y is one label, so x of shape \[3, 2, 6, 6\] is one sample; for N samples"),
    ],
)
def test_bad_samples_are_refused_and_nothing_is_lost(x: Any, y: Any, said: str) -> None:
    for begun in (False, True):
        model = learner(sparsifier=SparCL(0.5))
        if begun:
            model.observe(*next(batches()))
        before = model.checkpoint_state()
        with pytest.raises(SparclError, match=said):
            model.observe(x, y)
        assert tree.difference(before, model.checkpoint_state()) is None


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_samples_that_the_buffer_cannot_hold_are_refused_before_the_weights_move(policy: str) -> None:
    model = learner(methods.ER(20, buffer_storage="float16", buffer_policy=policy))
    (x, y), *rest = batches()
    model.observe(x, y)
    before = copy.deepcopy(model.checkpoint_state())
    with pytest.raises(DataError, match="float16 holds numbers up to 65504"):
        model.observe(x * 1e6, y)
    assert tree.difference(before, model.checkpoint_state()) is None
    model.observe(*rest[0])  # replays what is held


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    model = learner(methods.Finetune(), lr=1e30, optimizer=None)
    first, second = list(batches())[:2]
    model.observe(*first)
    with pytest.raises(TrainingError, match="NaN or infinite in step 2 of the stream: lower the learning rate"):
        model.observe(*second)
    with pytest.raises(DataError, match="NaN or infinite"):
        model.observe(torch.full((2, 2, 6, 6), float("inf")), [0, 1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["learner"].update(stream={"steps": 3, "samples": 2}), "steps of the stream"),
        (lambda s: s["learner"].update(stream={"steps": 1, "samples": "x"}), "samples of the stream"),
        (lambda s: s["learner"].update(stream={"steps": 1}), "the stream's position"),
        (lambda s: s["learner"].update(stream=None), "the stream's position"),
        (lambda s: s["learner"]["sparsifier"]["tdm"]["moments"].update(interval=0), "interval"),
    ],
)
def test_a_bent_stream_is_refused_by_name(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    model = learner(sparsifier=SparCL(0.5))
    model.observe(*next(batches()))
    state = model.checkpoint_state()
    change(state)
    Store(tmp_path).save(1, state)
    with pytest.raises(CheckpointError, match=said):
        Learner.load(tmp_path)


def test_the_interval_is_checked() -> None:
    with pytest.raises(ConfigError, match="TDM interval 0 is not allowed"):
        sparcl.SparCL(interval=0)
