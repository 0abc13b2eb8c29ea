"""A budget of epochs, steps or seconds: kept, followed by every schedule, and gone on with after a stop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import adam, blobs, make_learner

from sparcl import Learner, SparCL
from sparcl.checkpoint import tree
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.budget import UNITS, Budget, saved_budget
from sparcl.run.experiment import Experiment
from sparcl.sparsity import SET, RigL, Sparsifier

NO_REMOVAL: Callable[[], Sparsifier] = lambda: SparCL(0.7, samples=0.0)  # noqa: E731


class Watch:
    """An observer that keeps what it was told of some events."""

    def __init__(self, *names: str) -> None:
        self.names, self.seen, self.steps = names, [], 0

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        del figures
        self.steps += event == "step.end"
        if event in self.names:
            self.seen.append((event, self.steps))


def digest(learner: Learner) -> list[list[float]]:
    return [p.detach().flatten().tolist() for p in learner.model.parameters()]


def learned(watch: Watch | None = None, **options: Any) -> Learner:
    learner = make_learner(**{"observers": [watch] if watch else [], **options})
    for task in blobs():
        learner.learn(task)
    return learner


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which everything between two looks takes 1/64 s, which no sum rounds."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 64)


def test_a_budget_of_steps_is_exactly_so_many_in_each_task() -> None:
    assert learned(epochs=None, steps=7).steps == 14
    assert learned(epochs=None, steps=1).steps == 2


@pytest.mark.parametrize("make", [NO_REMOVAL, lambda: RigL(0.7, every=2), lambda: SET(0.7)])
def test_as_many_steps_as_the_epochs_have_give_the_same_bits(make: Callable[[], Sparsifier]) -> None:
    by_epochs = learned(sparsifier=make(), epochs=3)
    by_steps = learned(sparsifier=make(), epochs=None, steps=15)
    assert by_epochs.steps == by_steps.steps == 30
    assert digest(by_epochs) == digest(by_steps)


def test_removal_under_a_budget_of_steps_shortens_no_training() -> None:
    watch = Watch("ddr.remove")
    learner = learned(watch, sparsifier=SparCL(0.7, samples=0.5), epochs=None, steps=40)
    assert learner.steps == 80
    assert [step % 40 for _, step in watch.seen[:4]] == [4, 8, 12, 16]  # at 10, 20, 30 and 40 % of the budget


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(
    ("asked", "removed"),
    [
        ({}, (12, 0, 0)),
        ({"samples": 0.3}, (12, 12, 12)),
        ({"ddr_score": "forgetting"}, (12, 12, 12)),
        ({"samples": 0.0}, 3 * (0,)),
    ],
)
def test_under_steps_or_seconds_samples_leave_only_where_that_is_asked_for(
    asked: dict[str, Any], removed: tuple[int, ...]
) -> None:
    named = {"samples": "sample_removal", "seconds": "max_seconds"}
    for budget, count in zip(({"epochs": 10}, {"steps": 40}, {"seconds": 0.5}), removed, strict=True):
        learner = make_learner(**{"sparsifier": SparCL(0.7, **asked), "epochs": None, **budget})
        learner.learn(blobs()[0])  # 40 samples
        assert learner.sparsifier.removed == count
        options: dict[str, Any] = {named.get(name, name): value for name, value in (asked | budget).items()}
        assert Experiment("seq-digits", **options).resolve().sample_removal == count / 40


@pytest.mark.usefixtures("ticking")
def test_seconds_are_kept_and_the_moments_follow_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparcl.sparsity.tdm.STEPS_APART", 1)  # tasks are short here
    watch = Watch("tdm.update")
    learner = learned(watch, sparsifier=NO_REMOVAL(), epochs=None, seconds=0.5)
    # 1/64 s for each step, the first with the task's beginning: 32 fill half a second, and every 3.2 a tenth of it
    assert [steps[-1] for steps in learner.pace] == [32, 32]
    assert [step for _, step in watch.seen[:8]] == [4, 7, 10, 13, 16, 20, 23, 26]


@pytest.mark.usefixtures("ticking")
def test_a_pace_gives_the_same_bits_whatever_the_clock_says() -> None:
    first = learned(sparsifier=SparCL(0.7, samples=0.5), epochs=None, seconds=0.5)
    again = learned(sparsifier=SparCL(0.7, samples=0.5), epochs=None, seconds=1e-6, pace=first.pace)
    assert digest(first) == digest(again)
    assert again.pace == first.pace


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("budget", [{"steps": 33}, {"seconds": 0.5}])
def test_a_stopped_run_goes_on_with_what_is_left(budget: dict[str, float], tmp_path: Path) -> None:
    whole = learned(epochs=None, **budget)

    def stop(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end" and stopped.steps == stopped_at:
            stopped.save(tmp_path)
            raise KeyboardInterrupt

    stopped_at = whole.steps // 2 + 5  # within the second task
    stopped = make_learner(epochs=None, observers=[stop], **budget)
    stopped.learn(blobs()[0])
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(blobs()[1])
    resumed = Learner.load(tmp_path, make_learner().model, optimizer=adam, backend="reference")
    resumed.learn(blobs()[1])
    assert (resumed.steps, resumed.pace) == (whole.steps, whole.pace)
    assert digest(resumed) == digest(whole)


def test_checkpoints_and_evaluation_take_nothing_from_a_budget_of_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    save = Learner._save_to

    def slow_save(self: Learner, store: Any) -> Path:
        now[0] += 7
        return save(self, store)

    monkeypatch.setattr(Learner, "_save_to", slow_save)

    def look(event: str, figures: dict[str, Any]) -> None:
        now[0] += {"step.begin": 1 / 64, "evaluate.batch": 5}.get(event, 0)
        if event == "step.end" and figures["step"] == 2:
            learner.evaluate([blobs()[0]])

    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 3, "observers": [look]}
    learner = make_learner(epochs=None, seconds=0.5, **options)
    learner.learn(blobs()[0])
    assert [steps[-1] for steps in learner.pace] == [32]
    assert now[0] > 7 * 10 + 5 * 6


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"steps": 0}, "steps 0 is not allowed; use 1 or more"),
        ({"steps": 2.5}, "whole number"),
        ({"epochs": -1}, "epochs -1 is not allowed; use 1 or more"),
        ({"seconds": 0.0}, "above 0"),
        ({"seconds": -3.0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
        ({"seconds": float("inf")}, "above 0"),
        ({"seconds": True}, "seconds True is not allowed"),
        ({"seconds": 10**400}, "above 0, at most 1e"),
        ({"seconds": 1.1e9}, "above 0, at most 1e"),
        ({"epochs": 2, "steps": 3}, "epochs and steps are both given; a budget is one of: epochs, steps, seconds"),
        ({"seconds": 2.0, "pace": [[1, 2]]}, "rising"),
        ({"epochs": 2, "pace": [[*range(1, UNITS + 1)]]}, "has no effect beside epochs"),
        ({"steps": 2, "pace": [[*range(1, UNITS + 1)]]}, "has no effect beside steps"),
        ({"seconds": 2.0, "pace": [[*range(UNITS, 0, -1)]]}, "rising"),
    ],
)
def test_a_bad_budget_is_one_line(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(**{"epochs": None, **budget})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "saved",
    [
        {"epochs": 0},
        {"epochs": True},
        {"steps": -3},
        {"steps": 2.5},
        {"steps": 10**400},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"steps": "4"},
        {"epochs": 2, "steps": 3},
        {"hours": 1},
        {},
        [2],
    ],
)
def test_a_bad_budget_in_a_checkpoint_is_one_line(saved: Any) -> None:
    with pytest.raises(CheckpointError, match="the budget") as caught:
        saved_budget(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.usefixtures("ticking")
def test_a_budget_that_one_step_exceeds_is_refused_after_it() -> None:
    learner = make_learner(epochs=None, seconds=0.001)
    with pytest.raises(ConfigError, match=r"too little: one step takes 0\.0156"):
        learner.learn(blobs()[0])


def test_a_step_that_is_held_up_in_a_later_task_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def look(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.begin":
            now[0] += 9.0 if learner.learned == 1 and learner.position.done == 0 else 1 / 64

    learner = make_learner(epochs=None, seconds=0.5, observers=[look])
    for task in blobs():
        learner.learn(task)
    assert [steps[-1] for steps in learner.pace] == [32, 1]


@pytest.mark.usefixtures("ticking")
def test_a_budget_that_one_step_exceeds_leaves_no_state_that_looks_whole(tmp_path: Path) -> None:
    learner = make_learner(epochs=None, seconds=0.001)
    with pytest.raises(ConfigError, match="too little"):
        learner.learn(blobs()[0])
    with pytest.raises(ConfigError, match="go on from a checkpoint"):
        learner.learn(blobs()[0])
    with pytest.raises(CheckpointError, match="go on from a checkpoint"):
        learner.save(tmp_path)


@pytest.mark.parametrize("budget", [{"steps": 13}, {"seconds": 5.0, "pace": [[1 + i // 16 for i in range(UNITS)]]}])
def test_going_on_behind_a_tasks_last_step_ends_its_epoch(tmp_path: Path, budget: dict[str, Any]) -> None:
    """13 steps are two epochs of five and three steps of the third."""
    told: list[str] = []
    again: list[str] = []

    def save(event: str, figures: dict[str, Any]) -> None:
        del figures
        told.append(event)
        if event == "step.end":
            learner.save(tmp_path)

    learner = make_learner(epochs=None, observers=[save], **budget)
    learner.learn(blobs()[0])
    assert learner.steps == 13
    options: dict[str, Any] = {"optimizer": adam, "backend": "reference"}
    resumed = Learner.load(tmp_path, make_learner().model, observers=[lambda event, _: again.append(event)], **options)
    resumed.learn(blobs()[0])
    last = len(told) - 1 - told[::-1].index("step.end")
    assert again == told[last + 1 :]
    assert again[0] == "epoch.end"
    assert digest(resumed) == digest(learner)
    assert tree.difference(resumed.checkpoint_state(), learner.checkpoint_state()) is None


def test_every_share_of_a_pace_is_noted_at_the_step_that_spends_it() -> None:
    """0.29 of 200 parts is 57.999... in binary."""
    budget = Budget("steps", 200, paced=True)
    position = budget.begin(0, [])
    for step in range(200):
        position.step = step
        budget.note(position, 0.0)
    assert position.pace == [*range(1, UNITS + 1)]
