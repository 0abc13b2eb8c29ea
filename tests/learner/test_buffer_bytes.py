"""A buffer of so many bytes under a head that grows: each new class takes a logit of every sample, and so some samples.

Samples here take 32 bytes, labels 8, logits 4 a class; none is all zeros, as a row that nobody wrote would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import adam

from sparcl import Learner
from sparcl.checkpoint import tree
from sparcl.methods import DER, DERpp
from sparcl.methods.method import RehearsalMethod
from sparcl.nn import MLP
from sparcl.sparsity import Static
from sparcl.streams import make_task
from sparcl.streams.task import Task

BYTES = 4800
FITS = {2: 100, 3: 92, 4: 85}
"""Samples by classes."""


def drawn(samples: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(samples, 8)) + 5).astype(np.float32)


def named(names: str, samples: int, seed: int) -> Task:
    return make_task(drawn(samples, seed), [names[i % len(names)] for i in range(samples)])


TASKS = [named("ab", 72, 0), named("c", 32, 1), named("d", 16, 2)]


def model() -> MLP:
    torch.manual_seed(0)
    return MLP(1, (8,), width=16)


def growing(method: type[RehearsalMethod] = DERpp, policy: str = "reservoir", **options: Any) -> Learner:
    kept = method(buffer_bytes=BYTES, buffer_policy=policy)
    settings: dict[str, Any] = {"sparsifier": Static(0.5), "classes": (), "batch_size": 8, "optimizer": adam}
    return Learner(model(), kept, **settings | options)


@pytest.mark.parametrize("method", [DER, DERpp])
@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_it_holds_what_fits_and_nothing_that_was_never_written(method: type[RehearsalMethod], policy: str) -> None:
    learner = growing(method, policy)
    for task, fits in zip(TASKS, FITS.values(), strict=True):
        learner.learn(task)
        buffer = learner.method.buffer
        assert buffer is not None
        assert buffer.capacity == fits
        assert buffer.nbytes() <= BYTES
        held = buffer.recall()
        assert len(held) == len(buffer) == min(buffer.seen, fits)
        assert not bool((held == 0).all(1).any())


def test_it_goes_on_alike_from_where_a_later_task_began(tmp_path: Path) -> None:
    def save(event: str, figures: dict[str, Any]) -> None:
        if event == "task.begin":
            learner.save(tmp_path / str(figures["task"]))

    learner = growing(observers=[save])
    for task in TASKS:
        learner.learn(task)
    for begun in range(3):
        again = Learner.load(tmp_path / str(begun), model(), optimizer=adam)
        for task in TASKS[begun:]:
            again.learn(task)
        assert tree.difference(again.checkpoint_state(), learner.checkpoint_state()) is None


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_a_class_that_arrives_in_a_stream_costs_its_column_and_no_more(policy: str) -> None:
    learner = growing(policy=policy)
    for call in range(16):
        names = "ab" if call < 9 else "abc" if call < 14 else "abcd"
        learner.observe(drawn(8, call), [names[i % len(names)] for i in range(8)])
        buffer = learner.method.buffer
        assert buffer is not None
        assert buffer.nbytes() <= BYTES
    assert (buffer.capacity, len(buffer), buffer.seen) == (FITS[4], FITS[4], 128)
    assert not bool((buffer.recall() == 0).all(1).any())


def test_a_stream_is_loaded_that_was_saved_before_its_buffer_was_full(tmp_path: Path) -> None:
    """More classes came: what would fit of two no longer does, though there is room yet."""
    learner = growing(DERpp)
    learner.observe(drawn(4, 0), ["a", "b", "a", "b"])
    learner.observe(drawn(4, 1), ["a", "b", "c", "d"])
    assert learner.method.buffer is not None
    assert (learner.method.buffer.capacity, len(learner.method.buffer)) == (FITS[4], 8)
    again = Learner.load(learner.save(tmp_path), model(), optimizer=adam)
    assert tree.difference(again.checkpoint_state(), learner.checkpoint_state()) is None
