"""`sparcl bench --job`: what fits into so many seconds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparcl.main import _main
from sparcl.run import job

SMALL = ["bench", "--job", "--stream", "seq-digits", "--model", "convnet", "--width", "8", "--threads", "1"]


def test_the_rows_say_what_fits(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    few = ["--sparsity", "0.9", "--pattern", "unstructured", "--sparsifier", "static", "--sparsifier", "sparcl"]
    assert _main([*SMALL, *few, "--seconds", "5", "--samples", "300", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["sparsifier"] for row in rows] == ["dense", "static", "sparcl"]
    for row in rows:
        assert row["seconds"] == 5
        assert row["epochs"] == row["steps"] / (300 // 32)
        assert 0 < row["steps"] * row["step_ms"] <= 5000


def test_updates_and_choices_are_charged() -> None:
    row = {"sparsifier": "sparcl", "samples": 320, "batch_size": 32, "step_ms": 10.0, "update_ms": 50.0}
    assert job.steps_within(10, {**row, "choice_ms": 0.0}) == 960  # eight updates take as long as forty steps
    assert job.steps_within(10, {**row, "choice_ms": 30.0}) == 873  # and 29 choices as long as 87
    assert job.steps_within(10, {**row, "sparsifier": "static", "choice_ms": 0.0}) == 1000
    assert job.steps_within(0.005, {**row, "sparsifier": "dense", "choice_ms": 0.0}) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--job", "--seconds", "0"], "seconds 0.0 is not allowed; use a number above 0"),
        (["--job", "--seconds", "nan"], "use a number above 0"),
        (["--job", "--samples", "1"], "samples 1 is not allowed; use 2 or more"),
        (["--job", "--stream", "folder"], "the shape of folder is not known without its data"),
        (["--job", "--sparsifier", "magic"], "unknown sparsifier 'magic'"),
        (["--job", "--pattern", "unstructured", "--block-size", "8"], "block size 8 goes with pattern block"),
        (["--seconds", "5"], "--seconds goes with --job"),
        (["--seconds", "0"], "--seconds goes with --job"),
        (["--method", "er"], "--method goes with --job"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _main(["bench", *options]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
