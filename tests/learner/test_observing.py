"""`Learner.observe`: a stream without borders, which goes by steps and can be left and gone on with anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observed import BORDERLESS, CROPPED, Bare, batches, learner
from toys import Net, adam, blobs

from sparcl import Learner, kernels, methods
from sparcl.checkpoint import tree
from sparcl.errors import ConfigError, DataError, SparclError
from sparcl.sparsity import DGM, TDM, SparCL, Sparsifier, Static
from sparcl.sparsity.tdm import updates_within
from sparcl.streams import Normalize, Transform, make_task

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]


@pytest.mark.parametrize("name", BORDERLESS)
@pytest.mark.parametrize("sparsifier", [None, Static], ids=["dense", "static"])
def test_a_step_is_the_step_of_a_task_to_the_bit(name: str, sparsifier: type[Static] | None) -> None:
    """Where neither masks nor losses look at the task, one epoch over it is the same as its batches observed."""
    (task,) = blobs(tasks=1, per_class=20, flip=True)
    kind = methods.find(name)
    by_task, orders = learner(kind(), sparsifier and sparsifier(0.5)), []

    def note(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "epoch.begin":
            orders.append(by_task.position.order)  # type: ignore[union-attr]

    by_task.observers.append(note)
    by_task.learn(task)
    by_step = learner(kind(), sparsifier and sparsifier(0.5))
    for ids in orders[0].split(8):
        by_step.observe(task.train.inputs[ids], task.train.labels[ids], transform=task.transform)
    assert by_step.steps == by_task.steps == 5
    one, other = by_task.model.state_dict(), by_step.model.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert tree.difference(by_task.method.state_dict(), by_step.method.state_dict()) is None


SPARSIFIERS: dict[str, Callable[[], Sparsifier]] = {
    "dense": Sparsifier,
    "static": lambda: Static(0.6),
    "tdm": lambda: TDM(0.6, interval=3, batches=2),
    "dgm": lambda: DGM(0.3, interval=4),
    "sparcl": lambda: SparCL(0.6, interval=3),
    "fresh": lambda: SparCL(0.6, interval=3, ranking="fresh", samples=0.0),
    "block": lambda: SparCL(0.6, interval=3, pattern="block", block_size=2),
}


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(kind, "reference") for kind in SPARSIFIERS]
    + [pytest.param(kind, "native", marks=NATIVE) for kind in SPARSIFIERS if kind not in ("dense", "dgm")],
)
def test_left_after_any_call_it_goes_on_to_the_same_bits(tmp_path: Path, kind: str, backend: str) -> None:
    whole = learner(sparsifier=SPARSIFIERS[kind](), backend=backend)
    for i, (x, y) in enumerate(batches()):
        whole.observe(x, y, transform=CROPPED)
        whole.save(tmp_path / f"after-{i + 1}")
    assert whole.steps == 12
    for i in (1, 2, 3, 6, 11):
        again = Learner.load(tmp_path / f"after-{i}", backend=backend)
        assert again.observed == 8 * i
        for x, y in batches(skip=again.observed):
            again.observe(x, y)
        assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None


@pytest.mark.parametrize("name", BORDERLESS)
def test_every_method_goes_on_and_a_model_that_draws_too(tmp_path: Path, name: str) -> None:
    def made() -> Learner:
        return learner(methods.find(name)(), SparCL(0.6, interval=4), model=Net(dropout=0.3))

    whole, stopped = made(), made()
    for i, (x, y) in enumerate(batches()):
        whole.observe(x, y)
        if i < 5:
            stopped.observe(x, y)
    stopped.save(tmp_path)
    again = Learner.load(tmp_path, Net(seed=3, dropout=0.3), optimizer=adam, backend="reference")
    for x, y in batches(skip=again.observed):
        again.observe(x, y)
    assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None


def test_masks_move_by_steps_to_the_count_and_nothing_expands_or_leaves() -> None:
    told: list[tuple[int, str, dict[str, Any]]] = []
    model = learner(sparsifier=SparCL(0.7, interval=4))
    model.observers.append(lambda event, figures: told.append((model.steps, event, figures)))
    active = sum(len(la.index) for la in model.sparsifier.layers)
    for _ in range(2):
        for x, y in batches():
            model.observe(x, y)
    updates = [(step, figures) for step, event, figures in told if event == "tdm.update"]
    assert [step for step, _ in updates] == [4, 8, 12, 16, 20]
    assert all(f["removed"] == f["grown"] > 0 and f["active"] == active for _, f in updates)
    assert {"tdm.expand", "tdm.shrink", "ddr.remove"}.isdisjoint(event for _, event, _ in told)
    assert any(event == "dgm.choose" for _, event, _ in told)
    ends = [f for _, event, f in told if event == "step.end"]
    assert [f["step"] for f in ends] == list(range(1, 25))
    assert {f["samples"] for f in ends} == {8}


def test_gradients_are_chosen_by_their_own_interval() -> None:
    chosen: list[int] = []
    model = learner(sparsifier=DGM(0.3, interval=3, ranking="fresh"))
    model.observers.append(lambda event, _: chosen.append(model.steps) if event == "dgm.choose" else None)
    for x, y in batches():
        model.observe(x, y)
    assert chosen == [0, 3, 6, 9]


def test_what_is_ranked_by_is_the_cross_entropy_over_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = learner(methods.ER(20), SparCL(0.6))
    asked: list[tuple[int, ...]] = []
    real = model.method.single_head_loss
    monkeypatch.setattr(
        model.method, "single_head_loss", lambda logits, b: asked.append(b.task.classes) or real(logits, b)
    )
    for x, y in batches():
        model.observe(x, y)
    assert set(asked) == {(0, 1, 2, 3)}


# --- tasks before and after -------------------------------------------------------------------------------------------


def test_a_stream_between_two_tasks_and_back(tmp_path: Path) -> None:
    first, second = blobs(tasks=2, per_class=24)

    def made() -> Learner:
        return learner(sparsifier=SparCL(0.7, interval=3), epochs=4, checkpoint_dir=tmp_path, checkpoint_every=1)

    events: list[str] = []
    whole = made()
    whole.observers.append(lambda event, _: events.append(event))
    whole.learn(first)
    for x, y in batches():
        whole.observe(x, y)
    assert (whole.learned, whole.observed, whole.position) == (1, 96, None)
    assert "96 samples observed" in repr(whole)
    events.clear()
    whole.learn(second)
    assert (whole.learned, whole.observed) == (2, 0)
    assert {"tdm.expand", "tdm.shrink"} & set(events)
    assert "ddr.remove" in events, "samples leave again where there are tasks"
    assert events.count("tdm.update") == updates_within(events.count("step.end")) > 0
    assert len(whole.evaluate().task_il or ()) == 2


def test_learning_after_a_stream_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    first, second = blobs(tasks=2, per_class=24)
    whole = learner(sparsifier=SparCL(0.7, interval=3), epochs=2)
    seen: list[str] = []

    def save(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event in ("task.begin", "step.end") and whole.learned == 1:
            seen.append(event)
            whole.save(tmp_path / str(len(seen)))

    for x, y in batches():
        whole.observe(x, y)
    whole.learn(first)
    whole.observe(*next(batches()))
    whole.observers.append(save)
    whole.learn(second)
    assert seen[0] == "task.begin"
    for number in (1, 2, len(seen)):
        again = Learner.load(tmp_path / str(number), backend="reference")
        again.learn(second)
        assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None


def test_inside_a_task_it_is_refused(tmp_path: Path) -> None:
    first, _ = blobs(tasks=2)
    model = learner(checkpoint_dir=tmp_path, checkpoint_every=2)
    model.observers.append(lambda event, _: model.observe(*next(batches())) if event == "epoch.begin" else None)
    with pytest.raises(ConfigError, match="inside task 1: learn it to its end first"):
        model.learn(first)
    whole = learner(checkpoint_dir=tmp_path, checkpoint_every=2)
    whole.learn(first)
    loaded = Learner.load(tmp_path)
    with pytest.raises(ConfigError, match="inside task 1: learn it to its end first"):
        loaded.observe(*next(batches()))
    loaded.learn(first)
    loaded.observe(*next(batches()))
    loaded.observers.append(lambda event, _: loaded.observe(*next(batches())) if event == "step.end" else None)
    with pytest.raises(ConfigError, match="inside a step of the stream"):
        loaded.observe(*next(batches()))


# --- names, transforms, answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_grows_with_every_new_name(tmp_path: Path, backend: str) -> None:
    def made() -> Learner:
        return learner(model=Net(classes=1), sparsifier=SparCL(0.6, interval=3), classes=(), backend=backend)

    names = ["cup", "hand", -7, "éléphant"]
    whole, stopped = made(), made()
    for i, (x, y) in enumerate(batches()):
        for one in (whole, stopped) if i < 4 else (whole,):
            one.observe(x, [names[k] for k in y.tolist()])
    assert stopped.classes.names[:2] in (["cup", "hand"], ["hand", "cup"])
    assert set(whole.classes.names) == set(names)
    stopped.save(tmp_path)
    again = Learner.load(tmp_path, Net(classes=1, seed=4), optimizer=adam, backend=backend)
    for x, y in batches(skip=again.observed):
        again.observe(x, [names[k] for k in y.tolist()])
    assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None
    task = make_task(x, [names[k] for k in y.tolist()], test=(x, [names[k] for k in y.tolist()]))
    told = np.mean([a == names[k] for a, k in zip(again.predict(x).labels, y.tolist(), strict=True)])
    assert again.evaluate([task]).class_il == (pytest.approx(100 * told),)
    with pytest.raises(ConfigError, match="'dog' has no column"):
        again.evaluate([make_task(x[:2], ["cup", "dog"], test=(x[:2], ["cup", "dog"]))])


def test_one_sample_without_an_axis() -> None:
    x, y = next(batches())
    both = []
    for observe in (lambda le: le.observe(x[0], int(y[0])), lambda le: le.observe(x[:1], y[:1])):
        model = learner(methods.ER(20), Static(0.5), model=Bare())
        observe(model)
        assert model.observed == 1
        both.append(model.model.state_dict())
    assert all(torch.equal(both[0][k], both[1][k]) for k in both[0])
    model = learner(methods.ER(20), model=Bare())
    for label in (np.int64(1), torch.tensor(2), np.array(3)):
        model.observe(x[0].numpy(), label)
    assert model.method.buffer is not None
    assert model.method.buffer.labels[:3].tolist() == [1, 2, 3]
    model = learner(methods.ER(20), model=Bare(), classes=["a", "b", "c", "d"])
    model.observe(x[0], "e")
    assert model.classes.names[-1] == "e"


@pytest.mark.parametrize("name", BORDERLESS)
def test_single_samples_all_the_way_where_no_norm_forbids_it(name: str) -> None:
    model = learner(methods.find(name)(), SparCL(0.5, interval=5), model=Bare())
    for x, y in batches(1):
        model.observe(x, y)
    assert model.observed == model.steps == 96


def test_one_sample_and_batch_norm() -> None:
    x, y = next(batches())
    for name in ("finetune", "er-ace", "der", "derpp"):
        model = learner(methods.find(name)())
        model.observe(x, y)
        before = model.checkpoint_state()
        with pytest.raises(ConfigError, match=f"no batch statistics.*under method {name} it passes alone: give 2"):
            model.observe(x[0], int(y[0]))
        assert tree.difference(before, model.checkpoint_state()) is None
    model = learner(methods.ER(20), SparCL(0.5))
    with pytest.raises(ConfigError, match="nothing to replay yet: give 2 or more in the first call"):
        model.observe(x[0], int(y[0]))
    model.observe(x[:2], y[:2])
    model.observe(x[2], int(y[2]))  # joined with what is replayed
    assert model.observed == 3
    fresh = learner(methods.ER(20), SparCL(0.5, ranking="fresh"))
    fresh.observe(x, y)
    with pytest.raises(ConfigError, match="ranking 'fresh' passes it alone"):
        fresh.observe(x[0], int(y[0]))


def test_the_transform_is_kept_and_comes_back(tmp_path: Path) -> None:
    x, y = next(batches())
    scaled = Transform(Normalize((1.0,), (4.0,)))
    model = learner(methods.ER(20))
    model.observe(x, y, transform=scaled)
    model.observe(x, y)
    assert model.transform is scaled
    model.save(tmp_path)
    again = Learner.load(tmp_path)
    assert torch.equal(again.predict(x).probabilities, model.predict(x).probabilities)
    with torch.no_grad():
        assert torch.allclose(model.predict(x).probabilities, model.model((x - 1) / 4).softmax(1), atol=1e-6)

    class Own(Transform):
        pass

    model.observe(x, y, transform=Own())
    model.save(tmp_path)
    again = Learner.load(tmp_path)
    with pytest.raises(ConfigError, match="transform of your own class: give it"):
        again.observe(x, y)
    with pytest.raises(ConfigError, match=r"transform of your own class: put it into learner\.transform"):
        again.predict(x)
    again.observe(x, y, transform=Own())
    with pytest.raises(ConfigError, match="observe has a int for a transform"):
        again.observe(x, y, transform=3)  # type: ignore[arg-type]


def test_between_calls_it_is_evaluating_and_the_callers_generators_are_as_they_were() -> None:
    model = learner(model=Net(dropout=0.5))
    drawn = torch.get_rng_state()
    for x, y in batches():
        model.observe(x, y)
        assert not model.model.training
        assert torch.equal(model.predict(x).probabilities, model.predict(x).probabilities)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.evaluate(blobs(tasks=2).tasks).class_il is not None
    with pytest.raises(ConfigError, match="name the tasks"):
        model.evaluate()


def test_checkpoints_come_by_steps(tmp_path: Path) -> None:
    model = learner(checkpoint_dir=tmp_path, checkpoint_every=5)
    for x, y in batches():
        model.observe(x, y)
    assert {p.name for p in tmp_path.glob("step-*")} == {"step-5", "step-10"}
    assert Learner.load(tmp_path).observed == 80


def test_a_refused_call_does_not_grow_the_head() -> None:
    x, _ = next(batches())
    model = learner(methods.ER(20), classes=(), model=Net(classes=1))
    for names in (["a", "b"], ["c", "a"]):
        before = model.checkpoint_state()
        for wrong in (torch.zeros(2, 5, 6, 6), torch.full((2, 2, 6, 6), float("nan"))):
            with pytest.raises(SparclError):
                model.observe(wrong, ["x", "y"])
        with pytest.raises(DataError, match="there must be one for each"):
            model.observe(x[:2], ["x", "y", "z"])
        assert tree.difference(before, model.checkpoint_state()) is None
        model.observe(x[:2], names)
    assert model.classes.names == ["a", "b", "c"]
