import pytest

from sparcl.checkpoint import Checkpointer, Interval, interval
from sparcl.errors import ConfigError


def test_steps_and_seconds() -> None:
    assert Interval.parse("500") == Interval.parse(500) == Interval(steps=500)
    assert Interval.parse("60s") == Interval(seconds=60.0)
    assert Interval.parse("0.5s") == Interval(seconds=0.5)


@pytest.mark.parametrize("text", ["0", "0s", "-1", "1.5", "s", "", "60 s", "60m", "1e3", "nan", "٣", 0, -5])
def test_anything_else_is_refused_with_what_is_allowed(text: str | int) -> None:
    with pytest.raises(ConfigError, match=r"use steps \(500\) or seconds \(60s\)"):
        Interval.parse(text)


def test_every_so_many_steps() -> None:
    done, saved = [0], []
    checkpointer = Checkpointer(Interval(steps=3), lambda: saved.append(done[0]))
    for step in range(1, 11):
        done[0] = step
        for event in ("step.begin", "step.end", "evaluate.end"):
            checkpointer(event, {})
    assert saved == [3, 6, 9]


def test_every_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = [0.0], []
    monkeypatch.setattr(interval.time, "monotonic", lambda: clock[0])
    checkpointer = Checkpointer(Interval(seconds=10), lambda: saved.append(clock[0]))
    for now in (3.0, 9.0, 11.0, 12.0, 20.9, 21.0, 50.0):
        clock[0] = now
        checkpointer("step.end", {})
    assert saved == [11.0, 21.0, 50.0]
