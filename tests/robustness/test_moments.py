"""Runs ended at chosen moments (slow: two in three), each by one of the signals; by all of them with `make fault`."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import killing
import pytest
from moments import ENDING, MOMENTS, READING, TRAINING, Moment, Moments

from sparcl.checkpoint import disk
from sparcl.errors import CheckpointError

BY = dict(zip(MOMENTS, itertools.cycle(killing.ENDS), strict=False))


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Moments:
    killing.prepare()
    return Moments(tmp_path_factory.mktemp("moments"), killing.backends()[-1])


SHORT = [pytest.param(name, marks=[pytest.mark.slow] if i % 3 else []) for i, name in enumerate(MOMENTS)]


@pytest.mark.parametrize("name", SHORT)
def test_a_run_ended_at_a_chosen_moment_loses_nothing(moments: Moments, name: str) -> None:
    moments.check(name, BY[name])


def test_every_phase_meets_every_signal() -> None:
    met = {(MOMENTS[name].phase, number) for name, number in BY.items()}
    assert met == set(itertools.product((READING, TRAINING, ENDING), killing.ENDS))


def test_a_save_that_leaves_nothing_behind_is_noticed(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    real = disk.replace_file

    def careless(path: Path, parts: list[bytes]) -> disk.Written:
        if path.name == "latest":
            for folder in path.parent.glob("step-*"):
                disk.remove_folder(folder)
        return real(path, parts)

    moments.expected(False)
    monkeypatch.setattr(disk, "replace_file", careless)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        moments.check("a mask was moved", signal.SIGKILL)


def test_a_moment_that_never_comes_is_noticed(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOMENTS, "never", Moment("sparcl.checkpoint.disk:write_file", nth=10_000))
    with pytest.raises(AssertionError, match="the moment never came"):
        moments.check("never", signal.SIGTERM)
