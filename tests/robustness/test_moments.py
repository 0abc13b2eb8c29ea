"""Runs ended at chosen moments, each by one of the signals in turn; each by all of them with `make fault`."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import killing
import pytest
from moments import ENDING, MOMENTS, READING, TRAINING, Moment, Moments

from sparcl.checkpoint import disk

BY = dict(zip(MOMENTS, itertools.cycle(killing.ENDS), strict=False))


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moments]:
    killing.prepare()
    return Moments(tmp_path_factory.mktemp("moments"), killing.backends()[-1])


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_ended_at_a_chosen_moment_loses_nothing(moments: Moments, name: str) -> None:
    moments.check(name, BY[name])


def test_every_phase_meets_every_signal() -> None:
    met = {(MOMENTS[name].phase, number) for name, number in BY.items()}
    assert met == set(itertools.product((READING, TRAINING, ENDING), killing.ENDS))


def test_a_checkpoint_that_goes_with_the_signal_is_noticed(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a save that leaves nothing behind it would."""
    real = disk.replace_file

    def careless(path: Path, parts: list[bytes]) -> disk.Written:
        if path.name == "latest":
            for folder in path.parent.glob("step-*"):
                disk.remove_folder(folder)
        return real(path, parts)

    moments.expected(False)
    monkeypatch.setattr(disk, "replace_file", careless)
    with pytest.raises(AssertionError, match=r"was saved and is gone|no checkpoint"):
        moments.check("a mask was moved", signal.SIGKILL)


def test_a_moment_that_never_comes_is_noticed(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOMENTS, "never", Moment("sparcl.checkpoint.disk:write_file", nth=10_000))
    with pytest.raises(AssertionError, match="the moment never came"):
        moments.check("never", signal.SIGTERM)
