"""Trackers are told what events.jsonl holds, at the right steps."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from sparcl.main import _main
from sparcl.report.events import StepCounter, metrics

RUN = ["run", "seq-digits", "--epochs", "2", "--limit-per-class", "40", "--width", "4", "--backend", "reference"]
QUICK = [*RUN, "--threads", "1", "--out"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    kinds = [k for k in ("csv", "tensorboard") if k == "csv" or importlib.util.find_spec(k)]
    assert _main([*QUICK, str(out), *(word for kind in kinds for word in ("--track", kind))]) == 0
    return out


def rows(out: Path) -> list[tuple[int, str, float]]:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def test_csv_holds_every_metric_of_the_events(tracked: Path) -> None:
    lines = [json.loads(line) for line in (tracked / "events.jsonl").read_text().splitlines()]
    steps = StepCounter()
    expected = [
        (step, name, value) for line in lines for step in [steps(line)] for name, value in metrics(line).items()
    ]
    assert rows(tracked) == expected
    assert {name for _, name, _ in expected} >= {
        *("loss/epoch", "accuracy/class_il", "accuracy/task_il/task 5", "samples/kept", "weights/active"),
    }
    done = sum(line["steps"] for line in lines if line["event"] == "loss.epoch")
    assert rows(tracked)[-1][0] == done  # the last evaluation comes after all steps


def test_tensorboard_reads_what_was_told(tracked: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tracked / "tensorboard"))
    read.Reload()
    told = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in read.Scalars("loss/epoch")]
    assert told == [(step, value) for step, name, value in rows(tracked) if name == "loss/epoch"]
    assert len(told) == 10


def test_a_tracker_that_is_added_to_a_finished_run_is_told_all_of_it(tracked: Path, tmp_path: Path, capsys) -> None:
    """And what is there is left as it is."""
    late = tmp_path / "late"
    shutil.copytree(tracked, late)
    (late / "metrics.csv").unlink()
    for says in ("is finished; csv told of it", "is finished; nothing to do"):
        capsys.readouterr()
        assert _main([*QUICK, str(late), "--resume", "--track", "csv"]) == 0
        assert says in " ".join(capsys.readouterr().out.split())
        assert rows(late) == rows(tracked)


@pytest.mark.slow
def test_wandb_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert _main([*QUICK, str(tmp_path / "run"), "--track", "wandb"]) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "wandb" else find(name))
    for kind, says in (("mlflow", "allowed: csv, tensorboard, wandb"), ("wandb", "pip install 'sparcl-edge[wandb]'")):
        assert _main([*QUICK, str(tmp_path / "run"), "--track", kind]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_the_page_s_package_succeeds_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "jinja2" else find(name))
    assert _main([*QUICK, str(tmp_path / "run")]) == 0
    assert "no report.html: format html needs jinja2: pip install 'sparcl-edge[report]'" in capsys.readouterr().out
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_leaves_its_page(tracked: Path) -> None:
    page = (tracked / "report.html").read_text(encoding="utf-8")
    assert "Samples that left and that stayed" in page
    assert "Overlap" in page
    assert page.count('src="data:image/png') >= 5 * 2


def test_the_table_of_events_names_every_event_and_its_figures(tracked: Path) -> None:
    table = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    known = {
        name: set(re.findall(r"`(\w+)`", row[3]))
        for row in rows
        if len(row) == 5
        for name in re.findall(r"`([\w.]+)`", row[1])
    }
    everywhere = {"event", "task", "epoch", "step", "seconds"}
    lines = [json.loads(line) for line in (tracked / "events.jsonl").read_text().splitlines()]
    for line in lines:
        assert set(line) - everywhere <= known[line["event"]], line["event"]
    assert {"run.begin", "loss.epoch", "masks", "tdm.shrink", "dgm.choose", "ddr.remove", "evaluate"} <= {
        line["event"] for line in lines
    }
