"""The clock, on a time of the tests' own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl.cost.clock import Clock


class Time:
    def __init__(self) -> None:
        self.value = 100.0

    def __call__(self) -> float:
        return self.value


def play(clock: Clock, time: Time, script: str) -> None:
    """Events and, between them, seconds that pass."""
    for word in script.split():
        if word.isdigit():
            time.value += int(word)
        else:
            clock(word, {})


def test_phases() -> None:
    time = Time()
    clock = Clock(time)
    play(clock, time, "1 evaluate.begin 2 evaluate.end 4 task.begin 8 importance.begin 16 importance.end 32 dgm.choose")
    play(clock, time, "64 step.begin 128 step.end 256 evaluate.begin 512 evaluate.end 1024 task.end 2048")
    assert clock.seconds() == {
        "train": 8 + 16 + 32 + 64 + 128 + 256 + 1024,
        "evaluate": 2 + 512,
        "importance": 16 + 32,
        "total": 4095,
    }


def test_what_is_paused_is_no_training() -> None:
    """Within a task, where it goes on, and outside of one, where none begins."""
    time = Time()
    clock = Clock(time)
    play(clock, time, "task.begin 1")
    with clock.paused():
        assert not clock.state_dict()["seconds"]["train"] - 1
        play(clock, time, "2")
    play(clock, time, "4 task.end 8")
    with clock.paused():
        play(clock, time, "16")
    play(clock, time, "32")
    assert clock.seconds() == {"train": 1 + 4, "evaluate": 0, "importance": 0, "total": 63}


def test_several_ranking_passes_are_one_span() -> None:
    time = Time()
    clock = Clock(time)
    play(
        clock, time, "task.begin importance.begin 1 importance.end 2 importance.begin 4 importance.end 8 tdm.update 16"
    )
    assert clock.seconds()["importance"] == 15


def test_a_ranking_within_a_step_ends_where_the_step_goes_on() -> None:
    time = Time()
    clock = Clock(time)
    play(clock, time, "task.begin step.begin 1 importance.begin 2 importance.end 4 importance.pause 8 step.end 16")
    assert clock.seconds()["importance"] == 2 + 4


def test_seconds_run_on_inside_a_phase() -> None:
    time = Time()
    clock = Clock(time)
    play(clock, time, "task.begin 3")
    assert clock.seconds() == {"train": 3, "evaluate": 0, "importance": 0, "total": 3}


SCRIPT = (
    "1 task.begin 2 importance.begin 3 importance.end 4 dgm.choose 5 step.begin 6 step.end 7 task.end"
    " 8 evaluate.begin 9"
)


@given(st.integers(0, len(SCRIPT.split())))
def test_a_clock_goes_on_from_its_state(cut: int) -> None:
    """What passes between two processes is not counted; an evaluation or ranking that was cut short starts anew."""
    words = SCRIPT.split()
    time = Time()
    first = Clock(time)
    play(first, time, " ".join(words[:cut]))
    state = first.state_dict()
    time.value += 1000
    second = Clock(time)
    second.load_state_dict(state)
    play(second, time, " ".join(words[cut:]))
    other = Time()
    whole = Clock(other)
    play(whole, other, SCRIPT)
    assert second.seconds()["train"] == whole.seconds()["train"] == 27
    assert second.seconds()["total"] == whole.seconds()["total"] == 45
    assert second.seconds()["importance"] <= whole.seconds()["importance"]


def test_by_default_seconds_are_the_wall_clocks() -> None:
    clock = Clock()
    clock("task.begin", {})
    seconds = clock.seconds()
    assert 0 <= seconds["train"] <= seconds["total"] < 60
    assert seconds["evaluate"] == pytest.approx(0)
