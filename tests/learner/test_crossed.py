"""Where features meet: growing heads and streams, latents and time, data in memory and data read lazily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Net, blobs, make_learner

import sparcl
from sparcl import kernels, streams
from sparcl.errors import CheckpointError, ConfigError, DataError
from sparcl.learner import Learner
from sparcl.learner.saving import same_data
from sparcl.methods import ER
from sparcl.streams import Task

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]
FRONT = "stem,norm1,grouped,norm2"
DRAW = np.random.default_rng(0)
Y = np.arange(40) % 4
X = DRAW.normal(size=(40, 2, 6, 6)).astype("float32") + Y[:, None, None, None]
NAMES = np.array(["ant", "bee", "cow", "dog"])


def growing(**options: Any) -> Learner:
    return make_learner(model=Net(), sparsifier=None, method=ER(10), classes=(), **options)


# --- a growing head and the tasks of a stream -----------------------------------------------------------------------


def test_a_growing_head_learns_the_tasks_of_a_stream_whose_classes_have_names() -> None:
    order = ["dog", "ant", "bee", "cow"]
    stream = streams.from_arrays(X, list(NAMES[Y]), X, list(NAMES[Y]), class_order=order, classes_per_task=[1, 3])
    learner, by_hand = growing(), growing()
    for task in stream:
        learner.learn(task)
        here = np.isin(NAMES[Y], [order[k] for k in task.classes])
        by_hand.learn(streams.make_task(X[here], NAMES[Y][here], (X[here], NAMES[Y][here])))
    assert sorted(learner.classes.names) == sorted(order)
    assert learner.classes.names == by_hand.classes.names
    for one, other in zip(learner.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert learner.evaluate() == by_hand.evaluate() == learner.evaluate(stream.tasks)
    assert set(learner.predict(X[:5]).labels) <= set(order)


def test_its_tasks_come_in_their_order_and_are_checked() -> None:
    stream = blobs()
    learner = growing()
    with pytest.raises(ConfigError, match="task 2 was given, but task 1 is the next to learn"):
        learner.learn(stream[1])
    assert learner.classes.names == []
    wrong = Task(0, (0, 1), streams.Samples(stream[0].train.inputs, stream[0].train.labels + 7), None)
    with pytest.raises(DataError, match=r"make_task\(x, y\), or take it from a stream, which names its classes"):
        learner.learn(wrong)
    with pytest.raises(DataError, match="label 7 of sample 0 is out of range"):
        learner.learn(Task(0, (0, 1), wrong.train, None, column_names=("a", "b")))
    with pytest.raises(DataError, match="class 1 has no name"):
        learner.learn(Task(0, (0, 1), stream[0].train, None, column_names=("a",)))
    learner.learn(stream[0])
    with pytest.raises(ConfigError, match="class 2 has no column: it was never learned"):
        learner.evaluate(stream.tasks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_goes_on_inside_a_task_of_a_stream_to_the_same_bits(tmp_path: Path, backend: str) -> None:
    whole, stream = growing(backend=backend), blobs()

    def save(event: str, _: dict[str, Any]) -> None:
        if event == "step.end" and whole.steps == 17:
            whole.save(tmp_path)

    whole.observers.append(save)
    for task in stream:
        whole.learn(task)
    again = Learner.load(tmp_path, Net(), backend=backend)
    assert again.learned == 1
    for task in stream.tasks[again.learned :]:
        again.learn(task)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- the same data, in memory and read lazily ------------------------------------------------------------------------


@pytest.mark.parametrize("first_lazy", [True, False])
def test_a_checkpoint_inside_a_task_knows_its_data_however_it_is_held(tmp_path: Path, first_lazy: bool) -> None:
    np.save(tmp_path / "x.npy", np.concatenate([X] * 4))
    labels = np.concatenate([Y] * 4)
    held = np.load(tmp_path / "x.npy")

    def stream(lazy: bool, x: np.ndarray) -> streams.Stream:
        if lazy:
            np.save(tmp_path / "now.npy", x)
            x = np.load(tmp_path / "now.npy", mmap_mode="r")
        return streams.from_arrays(x, labels, classes_per_task=2)

    killed = make_learner(model=Net(), batch_size=16)

    def save(event: str, _: dict[str, Any]) -> None:
        if event == "step.end" and killed.steps == 2:
            killed.save(tmp_path / "saved")

    killed.observers.append(save)
    killed.learn(stream(first_lazy, held)[0])
    again = Learner.load(tmp_path / "saved", Net(), backend="reference")
    again.learn(stream(not first_lazy, held)[0])
    for one, other in zip(killed.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    other = held.copy()
    other[0] += 1  # the first is looked at whichever way it is held
    with pytest.raises(CheckpointError, match="task 1 has other data"):
        Learner.load(tmp_path / "saved", Net()).learn(stream(not first_lazy, other)[0])
    if not first_lazy:  # in memory both times every sample counts
        other = held.copy()
        other[5] += 1
        with pytest.raises(CheckpointError, match="task 1 has other data"):
            Learner.load(tmp_path / "saved", Net()).learn(stream(False, other)[0])


def test_a_fingerprint_of_an_earlier_version_is_known() -> None:
    assert same_data("a", "a b")
    assert same_data("b", "a b")
    assert same_data("a b", "a b")
    assert not same_data("a b", "c b")  # both looked at all
    assert not same_data("c", "a b")


# --- latents --------------------------------------------------------------------------------------------------------


def behind(**options: Any) -> Learner:
    return make_learner(model=Net(), freeze=FRONT, latents="float16", **options)


def test_a_front_that_is_overwritten_between_tasks_is_noticed(tmp_path: Path) -> None:
    learner, stream = behind(), blobs()
    learner.learn(stream[0])
    learner.save(tmp_path)
    old = [p.detach().clone() for p in learner.latents.front.parameters()]
    next(learner.latents.front.parameters()).data.mul_(2)
    for go_on in (lambda: learner.learn(stream[1]), lambda: learner.observe(X[:4], [0, 1, 2, 3])):
        with pytest.raises(ConfigError, match="the frozen part has other weights than the latents so far"):
            go_on()
    loaded = Learner.load(tmp_path, Net())
    next(loaded.latents.front.parameters()).data.mul_(2)
    with pytest.raises(ConfigError, match="the frozen part has other weights"):
        loaded.learn(stream[1])
    for parameter, value in zip(learner.latents.front.parameters(), old, strict=True):
        parameter.data.copy_(value)
    learner.learn(stream[1])


def test_computing_latents_is_told_and_takes_nothing_from_a_budget_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    learner = behind(epochs=None, seconds=2.0, batch_size=64)
    learner.observers.append(lambda event, figures: told.append(figures) if event == "latents.batch" else None)
    clock, through = [0.0], learner.latents.through
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow(inputs: torch.Tensor) -> torch.Tensor:
        clock[0] += 100.0
        return through(inputs)

    monkeypatch.setattr(learner.latents, "through", slow)
    train = learner._train
    monkeypatch.setattr(learner, "_train", lambda position: clock.__setitem__(0, clock[0] + 0.5) or train(position))
    learner.learn(blobs(per_class=50)[0])
    assert told == [{"task": 0, "done": 64, "of": 100}, {"task": 0, "done": 100, "of": 100}]
    assert learner.steps == 4


@pytest.mark.parametrize("grows", [True, False])
def test_whatever_it_is_made_of_it_fits_three_lines(tmp_path: Path, grows: bool) -> None:
    np.save(tmp_path / "x.npy", X)
    lazy = np.load(tmp_path / "x.npy", mmap_mode="r")
    stream = streams.from_arrays(lazy, list(NAMES[Y]), classes_per_task=[1, 3])
    learner = make_learner(
        model=Net(), freeze=FRONT, latents="int8", method=ER(buffer_bytes="9kB"), classes=() if grows else None
    )
    learner.learn(stream[0])
    label = "dog" if grows else 3
    learner.observe(X[:4], [label] * 4)
    for thing in (stream, stream[1], stream[1].train, stream[1].train.inputs, learner, learner.method.buffer):
        assert repr(thing).count("\n") < 3, repr(thing)
        assert len(repr(thing)) < 400
        assert "tensor" not in repr(thing)
        assert "object at" not in repr(thing)


# --- an augmentation of your own --------


def brighter(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return batch + torch.rand(1, generator=generator)


def test_an_own_augmentation_is_asked_for_when_a_stream_goes_on_elsewhere(tmp_path: Path) -> None:
    transform = streams.Transform().augmented(brighter)
    learner = make_learner(model=Net(), method=ER(10))
    learner.observe(X[:8], Y[:8], transform=transform)
    learner.save(tmp_path)
    learner.observe(X[8:16], Y[8:16])
    again = Learner.load(tmp_path, Net(), backend="reference")
    again.predict(X[:4])  # without it
    with pytest.raises(ConfigError, match=r"'brighter' of your own: give it, observe\(x, y, transform=\)"):
        again.observe(X[8:16], Y[8:16])
    again.observe(X[8:16], Y[8:16], transform=transform)
    for one, other in zip(learner.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_own_augmentation_with_latents_is_refused() -> None:
    stream = blobs().augmented(brighter)
    with pytest.raises(ConfigError, match="augmentation brighter would have no effect: latents are computed once"):
        behind().learn(stream[0])
    with pytest.raises(ConfigError, match="augmentation brighter would have no effect"):
        behind().observe(X[:4], Y[:4], transform=stream[0].transform)


# --- blurred borders, and no test samples --------


@pytest.mark.parametrize("grows", [True, False])
def test_the_tasks_of_a_blurry_stream_can_be_learned(grows: bool) -> None:
    stream = streams.blurry(blobs(), 0.3, disjoint=0.0)
    learner = make_learner(model=Net(), sparsifier=None, method=ER(10), classes=() if grows else None)
    for task in stream:
        learner.learn(task)
    assert len(learner.evaluate().class_il) == len(learner.evaluate(stream.tasks).class_il) == 2


def test_nothing_is_observed_where_nothing_can_be_measured() -> None:
    learner = make_learner(model=Net(), method=ER(10))
    with pytest.raises(ConfigError, match="stream arrays has tasks without test samples: nothing to measure on"):
        sparcl.online(learner, streams.from_arrays(X, Y))
    assert learner.steps == 0
