"""`sparcl bench --job`: what fits into so many seconds, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nn.native import needs_native
from toys import Net, blobs

from sparcl import Learner
from sparcl.main import _main
from sparcl.run import bench, build, job
from sparcl.run.experiment import Experiment
from sparcl.sparsity import SET

QUICK = ["--stream", "seq-digits", "--width", "4"]
SMALL = ["bench", "--job", "--stream", "seq-digits", "--model", "convnet", "--width", "8", "--threads", "1"]


@pytest.mark.parametrize(("samples", "passes"), [(300, (10, 9, 9)), (50, (2, 1, 1)), (2, (1, 1, 1))])
def test_the_rows_say_what_fits(tmp_path: Path, samples: int, passes: tuple[int, ...]) -> None:
    """Of tasks of few samples, too; sparsifiers drop the last partial batch."""
    file = tmp_path / "rows.json"
    few = ["--sparsity", "0.9", "--pattern", "unstructured", "--sparsifier", "static", "--sparsifier", "sparcl"]
    assert _main([*SMALL, *few, "--seconds", "5", "--samples", str(samples), "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["sparsifier"] for row in rows] == ["dense", "static", "sparcl"]
    for row, steps in zip(rows, passes, strict=True):
        assert row["seconds"] == 5
        assert row["epochs"] == row["steps"] / steps
        assert 0 < row["steps"] * row["step_ms"] <= 5000
        assert row["peak_bytes"] > 0


def test_the_peak_is_that_of_the_jobs_own_steps() -> None:
    """The stream's shape and classes, what is replayed, and what the optimizer keeps."""

    def peak(**settings: Any) -> int:
        base = {
            "stream": "seq-tinyimg",
            "model": "mlp",
            "sparsifier": "dense",
            "threads": 1,
            "batch_size": 8,
            "width": 64,
        }
        asked = Experiment.from_dict({**base, "method": "finetune", "steps": 12, **settings}).resolve()
        found = job.Side(asked, build.learner(asked, job.noise(asked, 300))).peak_bytes(300)
        assert found is not None
        return found

    usual = peak()
    assert usual - peak(stream="seq-digits") > 5e6, "weights of 64 times 12 288, and their gradients"
    assert peak(optimizer="adam") - usual > 5e6, "two moments of them"
    assert peak(method="er", buffer_size=1000) - usual > 1e6, "up to 96 images a turn are kept, 12 kB each"


def test_what_was_timed_is_not_lost_where_memory_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> Any:
        return subprocess.CompletedProcess([], 1, "", "Traceback ...\nMemoryError")

    monkeypatch.setattr(bench.subprocess, "run", ended)
    rows, told = job.rows_of({"stream": "seq-digits", "width": 4}, ["dense"], None, None, 4), []
    (row,) = job.measure(rows, 1.0, 50, told.append)
    assert (row["peak_bytes"], row["steps"] > 0) == (None, True)
    assert told[-1] == "the memory of dense could not be measured: MemoryError"
    assert "–" in str(list(job.as_table([row]).columns[-1].cells))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"sparsifiers": ["dense"]}, [("dense", None, "unstructured")]),
        ({"sparsifiers": ["dense"], "sparsities": [0.0]}, [("dense", 0.0, "unstructured")]),
        (
            {"sparsifiers": ["dense", "static", "static"], "sparsities": [0.5, 0.5], "patterns": ["block"]},
            [("dense", None, "unstructured"), ("static", 0.5, "block")],
        ),
    ],
)
def test_every_row_is_there_once(options: dict[str, Any], rows: list[Any]) -> None:
    for method in ("derpp", "ewc", "lwf"):
        usual: dict[str, Any] = {"sparsities": None, "patterns": None, "block_size": 4}
        made = job.rows_of({"stream": "seq-digits", "method": method}, **{**usual, **options})
        assert [(row.sparsifier, row.sparsity, row.pattern) for row in made] == rows


@needs_native
def test_activations_are_of_the_sparse_rows() -> None:
    base = {"stream": "seq-cifar10", "width": 4, "threads": 1}
    rows = job.rows_of(base, ["sparcl"], [0.9], ["unstructured"], 4, "bfloat16")
    assert [(row.sparsifier, row.activations) for row in rows] == [("dense", None), ("sparcl", "bfloat16")]
    assert isinstance(job.measure(rows[1:], 1.0, 50, lambda _: None)[0]["step_ms"], float)
    assert job.label({"sparsifier": "sparcl", "sparsity": 0.9, "pattern": "block", "activations": "bfloat16"}) == (
        "sparcl 0.9 block bfloat16"
    )


def test_updates_and_choices_are_charged() -> None:
    row = {
        "sparsifier": "sparcl",
        "samples": 320,
        "batch_size": 32,
        "drop_last": True,
        "step_ms": 10.0,
        "update_ms": 50.0,
    }
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
        (["--job", "--sparsifier", "dense", "--sparsity", "0.9"], "sparsity 0.9 goes with a sparsifier"),
        (
            ["--job", "--sparsifier", "dense", "--pattern", "unstructured", "--block-size", "8"],
            "block size 8 goes with",
        ),
        (["--job", "--sparsifier", "dense", "--block-size", "8"], "block size 8 goes with a sparsifier"),
        (["--job", "--sparsifier", "dense", "--pattern", "block"], "goes with a sparsifier"),
        (["--job", "--method", "ewc"], "use sparsifier dense, static or snip"),
        (["--job", "--method", "joint", *QUICK], "method joint learns all tasks at once, and a job is timed by tasks"),
        (["--job", "--method", "icarl", *QUICK], "method icarl takes no class twice"),
        (["--job", "--method", "packnet", "--sparsifier", "dense", *QUICK], "method packnet takes no class twice"),
        (["--job", "--compile"], "--compile goes without --job"),
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


def test_what_takes_part_is_timed_each_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices, readings for them and updates; SET's too, whose mask moves after an epoch, were that a single step.

    By a clock that gives a step 1 ms, and one in which something takes part 3.
    """
    note = job.Side._note

    def even(side: job.Side, seconds: float, events: list[str]) -> None:
        del seconds
        more = any(e.endswith((".update", ".shrink")) or e in ("dgm.choose", "importance.passed") for e in events)
        note(side, 0.003 if more else 0.001, events)

    monkeypatch.setattr(job.Side, "_note", even)
    file, few = tmp_path / "rows.json", ["--sparsity", "0.9", "--pattern", "unstructured", "--sparsifier", "set"]
    assert _main([*SMALL, *few, "--sparsifier", "sparcl", "--seconds", "5", "--json", str(file)]) == 0
    _, of_set, sparcl = json.loads(file.read_text())
    assert [of_set[k] for k in ("step_ms", "update_ms", "choice_ms", "read_ms")] == pytest.approx([1, 2, 0, 0])
    assert [sparcl[k] for k in ("step_ms", "update_ms", "choice_ms", "read_ms")] == pytest.approx([1, 2, 2, 2])
    assert sparcl["read_share"] == pytest.approx(2 / 9)  # a pass back of the task's samples, of three forward and back
    assert _main([*SMALL, *few, "--seconds", "5", "--samples", "40", "--json", str(file)]) == 0
    _, of_set = json.loads(file.read_text())
    assert of_set["steps"] > 0


def test_readings_are_charged_as_often_as_a_task_has_them() -> None:
    row = {"sparsifier": "sparcl", "samples": 320, "batch_size": 32, "drop_last": True, "step_ms": 10.0}
    row |= {"update_ms": 0.0, "choice_ms": 0.0, "read_ms": 5.0, "read_share": 2 / 9}
    assert job.reads_of(row, 300) == 28  # of 1 + 10 choices and 8 updates of 4 a fiftieth of the steps pays for 27 more
    assert job.reads_of(row, 3000) == 133  # all
    assert job.steps_within(3, row) == 287
    assert job.reads_of({k: v for k, v in row.items() if k != "read_share"}, 300) == 0


def test_set_moves_after_every_epoch_of_a_task_but_the_last() -> None:
    told: list[str] = []
    learner = Learner(
        Net(), sparsifier=SET(0.7), epochs=3, batch_size=8, observers=[lambda event, _: told.append(event)]
    )
    learner.learn(blobs()[0])
    row = {"sparsifier": "set", "samples": 40, "batch_size": 8, "drop_last": True}
    assert [job.updates_of(row, steps) for steps in (0, 5, 6, 15, 16)] == [0, 0, 1, 2, 3]
    assert told.count("set.update") == 2 == job.updates_of(row, told.count("step.end"))
