"""Ctrl-C while a Learner learns: the first waits for a whole state, the second does not, and what it breaks is said."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import adam, blobs, make_learner

from sparcl import Learner, SparCL, kernels
from sparcl.checkpoint import tree
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.interrupts import TORN

BACKENDS = [*(["native"] if kernels.available() else []), "reference"]


def ctrl_c(*events: str, after: int, times: int = 1) -> Callable[[str, dict[str, Any]], None]:
    """An observer that presses it, once, at the first of these events after so many steps."""
    steps, pressed = 0, False

    def press(event: str, _: dict[str, Any]) -> None:
        nonlocal steps, pressed
        steps += event == "step.end"
        if event in events and steps >= after and not pressed:
            pressed = True
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return press


@pytest.fixture(autouse=True)
def usual_handler() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def learn_the_rest(learner: Learner) -> Learner:
    for task in blobs().tasks[learner.learned :]:
        learner.learn(task)
    return learner


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("event", "after"),
    [
        *(("step.begin", 3), ("dgm.choose", 0), ("tdm.expand", 0), ("tdm.update", 0), ("ddr.remove", 0)),
        *(("epoch.begin", 9), ("epoch.end", 0), ("step.end", 20), ("task.begin", 9)),
    ],
)
def test_the_first_waits_for_a_state_that_is_saved_and_gone_on_from_to_the_same_bits(
    event: str, after: int, backend: str, tmp_path: Path
) -> None:
    learner = make_learner(backend=backend, observers=[ctrl_c(event, after=after)])
    with pytest.raises(KeyboardInterrupt):
        learn_the_rest(learner)
    learner.save(tmp_path)
    again = Learner.load(tmp_path, make_learner().model, optimizer=adam, backend=backend)
    at_the_end = learn_the_rest(make_learner(backend=backend)).checkpoint_state()
    for one in (learner, again):
        learn_the_rest(one)
        assert tree.difference(one.checkpoint_state(), at_the_end) is None


def test_at_the_end_of_a_task_that_is_learned() -> None:
    learner = make_learner(observers=[ctrl_c("task.end", after=0)])
    with pytest.raises(KeyboardInterrupt):
        learner.learn(blobs()[0])
    assert (learner.learned, learner.position) == (1, None)


def test_a_step_of_a_stream_is_made_whole() -> None:
    x, y = torch.randn(8, 2, 6, 6), [0, 1, 2, 3] * 2
    learner = make_learner(sparsifier=SparCL(0.7, samples=0.0, interval=4), observers=[ctrl_c("step.begin", after=2)])
    other = make_learner(sparsifier=SparCL(0.7, samples=0.0, interval=4))
    for _ in range(2):
        learner.observe(x, y)
    with pytest.raises(KeyboardInterrupt):
        learner.observe(x, y)
    assert learner.observed == 24
    learner.observe(x, y)
    for _ in range(4):
        other.observe(x, y)
    assert tree.difference(learner.checkpoint_state(), other.checkpoint_state()) is None


def test_the_second_ends_it_at_once_and_the_broken_step_is_said(tmp_path: Path) -> None:
    learner = make_learner(observers=[ctrl_c("step.begin", after=3, times=2)])
    with pytest.raises(KeyboardInterrupt):
        learner.learn(blobs()[0])
    assert learner.steps == 3
    with pytest.raises(CheckpointError, match="broken off"):
        learner.save(tmp_path)
    with pytest.raises(ConfigError) as refused:
        learner.learn(blobs()[0])
    assert str(refused.value) == TORN
    assert list(tmp_path.iterdir()) == []
    seen = make_learner(
        sparsifier=SparCL(0.7, samples=0.0, interval=4), observers=[ctrl_c("step.begin", after=1, times=2)]
    )
    x, y = torch.randn(8, 2, 6, 6), [0, 1] * 4
    seen.observe(x, y)
    for raised in (KeyboardInterrupt, ConfigError):
        with pytest.raises(raised):
            seen.observe(x, y)


def test_behind_a_broken_step_a_state_that_is_restored_is_gone_on_from() -> None:
    whole, broken = make_learner(), make_learner(observers=[ctrl_c("step.begin", after=3, times=2)])
    whole.learn(blobs()[0])
    with pytest.raises(KeyboardInterrupt):
        broken.learn(blobs()[0])
    broken.observers.clear()
    broken.restore(whole.checkpoint_state())
    for learner in (whole, broken):
        learner.learn(blobs()[1])
    assert tree.difference(whole.checkpoint_state(), broken.checkpoint_state()) is None


def test_a_handler_of_ones_own_stays_and_hears_it_at_once() -> None:
    heard: list[int] = []

    def own(*_: Any) -> None:
        heard.append(learner.steps)

    signal.signal(signal.SIGINT, own)
    learner = make_learner(observers=[ctrl_c("step.begin", after=3)])
    learner.learn(blobs()[0])
    assert (heard, signal.getsignal(signal.SIGINT)) == ([3], own)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_than_the_main_one_learns_too() -> None:
    learner = make_learner()
    thread = threading.Thread(target=learner.learn, args=(blobs()[0],))
    thread.start()
    thread.join()
    assert learner.learned == 1


@pytest.mark.parametrize("part", ["optimizer", "method"])
@pytest.mark.parametrize("step", [1, 5])
def test_what_fails_while_the_weights_move_leaves_no_state_to_go_on_from(tmp_path: Path, part: str, step: int) -> None:
    """As out of memory: the weights of that step have moved, its samples are not remembered, it is not counted."""
    learner, whole, first = make_learner(), make_learner(), blobs()[0]
    start = copy.deepcopy(learner.checkpoint_state())
    called, name = getattr(learner, part), "step" if part == "optimizer" else "after_step"
    works, calls = getattr(called, name), []

    def fails(*arguments: Any) -> None:
        calls.append(works(*arguments))
        if len(calls) == step:
            raise RuntimeError("no memory left")

    setattr(called, name, fails)
    with pytest.raises((RuntimeError, ConfigError), match="no memory left"):
        learner.learn(first)
    setattr(called, name, works)
    with pytest.raises(CheckpointError, match="broken off"):
        learner.save(tmp_path)
    with pytest.raises(ConfigError, match="broken off"):
        learner.learn(first)
    learner.restore(start)
    for each in (learner, whole):
        each.learn(first)
    assert tree.difference(learner.checkpoint_state(), whole.checkpoint_state()) is None
