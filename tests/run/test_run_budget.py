"""`--steps` and `--max-seconds`: what the command line refuses, records and repeats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sparcl.main import _main
from sparcl.run.experiment import Experiment
from sparcl.run.overriding import overridden
from sparcl.run.toml import read_toml

ON_LINUX = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back here"
)
RUN = ["run", "seq-digits", "--limit-per-class", "20", "--width", "4", "--threads", "1", "--batch-size", "8"]


def result(out: Path, *options: str) -> dict[str, Any]:
    assert _main([*RUN, "--out", str(out), *options]) == 0
    record: dict[str, Any] = json.loads((out / "result.json").read_text())
    return record


def test_a_run_of_so_many_seconds_runs_again_to_the_same_bits(tmp_path: Path) -> None:
    first = result(tmp_path / "a", "--max-seconds", "0.4")
    assert len(Experiment.from_dict(read_toml(tmp_path / "a" / "config.toml")).pace) == 5
    assert _main(["run", "--config", str(tmp_path / "a" / "config.toml"), "--out", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "result.json").read_text())
    assert again["model_sha256"] == first["model_sha256"]
    assert again["flops"] == first["flops"]
    assert _main([*RUN, "--max-seconds", "0.4", "--out", str(tmp_path / "a"), "--resume"]) == 0  # finished


def test_a_budget_of_steps_costs_the_dense_host_as_many(tmp_path: Path) -> None:
    record = result(tmp_path / "a", "--steps", "9", "--sparsifier", "dense", "--method", "finetune")
    assert record["samples"]["seen"] == 5 * 9 * 8
    assert record["flops"]["dense"] == record["flops"]["executed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps 0 is not allowed; use 1 or more"),
        (["--max-seconds", "nan"], "above 0"),
        (["--max-seconds", "-1"], "above 0"),
        (["--steps", "5", "--epochs", "2"], "--epochs and --steps are both given"),
        (["--steps", "5", "--max-seconds", "2"], "--steps and --max-seconds are both given"),
        (["--max-seconds", "1e-7"], "is too little: one step takes"),
        pytest.param(["--max-memory", "1"], "max memory of 1 B is too little: even", marks=ON_LINUX),
    ],
)
def test_a_bad_budget_is_one_line_and_leaves_nothing(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _main([*RUN, "--out", str(tmp_path / "a"), *options]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "a").exists()


def test_a_budget_given_replaces_that_of_the_file_and_its_pace() -> None:
    values = {"stream": "seq-digits", "max_seconds": 2.0, "pace": [[1] * 200]}
    assert overridden(values, {"steps": 4}) == {"stream": "seq-digits", "steps": 4}
    assert overridden(values, {"data": "x"}) == {**values, "data": "x"}
    assert "pace" not in overridden(values, {"seed": 3})


def test_a_budget_of_steps_removes_nothing_unless_asked() -> None:
    assert Experiment("seq-digits", steps=5).resolve().sample_removal == 0.0
    assert Experiment("seq-digits", steps=5, sample_removal=0.3).resolve().sample_removal == 0.3
    assert Experiment("seq-digits").resolve().sample_removal == 0.3
