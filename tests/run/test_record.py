"""events.jsonl: what is in it, and that a stop leaves no trace in it but the note of the resume."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparcl.main import _main
from sparcl.run import signals
from sparcl.run.record import as_json

RUN = ["run", "seq-digits", "--epochs", "1", "--limit-per-class", "40", "--width", "4", "--backend", "reference"]
ARGUMENTS = [*RUN, "--threads", "1", "--track", "csv", "--out"]


def events(out: Path) -> list[dict[str, Any]]:
    """All but the notes of resumes, without the time, which differs from run to run."""
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["event"] != "run.resume"]


def stop_at(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM arrives just before the run passes its `place`th place where it may stop."""
    real, passed = signals.StopRequest.__call__, [0]

    def call(self: signals.StopRequest, event: str, figures: dict[str, Any]) -> None:
        passed[0] += event in signals.PLACES
        if passed[0] == place:
            self.signal = 15
        real(self, event, figures)

    monkeypatch.setattr(signals.StopRequest, "__call__", call)


@pytest.mark.parametrize("place", [3, 6, 9])  # in the untrained network's evaluation, at a step, in a task's evaluation
def test_a_run_stopped_anywhere_and_resumed_has_the_events_of_one_never_stopped(tmp_path: Path, place: int) -> None:
    assert _main([*ARGUMENTS, str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(place, patch)
        assert _main([*ARGUMENTS, str(tmp_path / "stopped")]) == 143
    assert _main([*ARGUMENTS, str(tmp_path / "stopped"), "--resume"]) == 0
    whole = events(tmp_path / "whole")
    assert events(tmp_path / "stopped") == whole
    counts = {name: sum(line["event"] == name for line in whole) for name in ("evaluate", "masks", "loss.epoch")}
    assert counts == dict.fromkeys(counts, 5)
    for name in ("samples.json", "metrics.csv"):
        assert kept(tmp_path / "stopped" / name) == kept(tmp_path / "whole" / name)
    one, other = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("stopped", "whole"))
    assert one["per_class"] == other["per_class"]
    assert one["flops"] == other["flops"]


def kept(file: Path) -> list[str]:
    """A record's lines without the column of seconds."""
    return [re.sub(r"^(\d+),[\d.]+,", r"\1,", line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_lists_of_plain_values_stand_on_one_line_and_say_the_same() -> None:
    value = {"a": [[1, 2.5], [None, True]], "b": ['x, [1],\n "q" ]', "\\"], "c": [], "d": [{"e": [1, [2]]}]}
    text = as_json(value)
    assert json.loads(text) == value
    assert "[1, 2.5]" in text
    assert as_json({"a": [float("nan"), 1.0]}) == '{\n  "a": [null, 1.0]\n}\n'
