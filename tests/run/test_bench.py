"""`sparcl bench`: rows with a meaning, a table, and what is refused."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparcl import kernels
from sparcl.main import _main
from sparcl.run import bench
from sparcl.run.bench import Side

pytestmark = pytest.mark.skipif(not kernels.available(), reason=kernels.why_unavailable())

FIELDS = {"sparsity", "pattern", "dense_ms", "dense_variant", "native_ms", "speedup", "peak_dense_bytes"}
FIELDS |= {"peak_native_bytes", "isa", "threads", "batch", "width"}


def test_the_command_measures_and_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    file = tmp_path / "rows.json"
    options = "--model convnet --width 8 --batch-size 4 --threads 1 --sparsity 0.9"
    assert _main(["bench", *options.split(), "--pattern", "block", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["sparsity"], row["pattern"]) for row in rows] == [(0.9, "block")]
    for row in rows:
        assert set(row) >= FIELDS
        assert row["speedup"] == pytest.approx(row["dense_ms"] / row["native_ms"])
        assert row["dense_variant"] in ("nchw", "channels_last")
        assert row["isa"] == kernels.isa()
        assert row["peak_native_bytes"] > 0
        assert row["theoretical_gain"] > 3
    assert "block" in capsys.readouterr().out
    printed = StringIO()
    Console(width=80, file=printed).print(
        bench.as_table([{**rows[0], "pattern": "unstructured", "sparsity": 0.95, "dense_ms": 471.1}])
    )
    assert "…" not in printed.getvalue()


def test_steps_with_activations_in_bfloat16_are_timed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    passed: list[str] = []
    monkeypatch.setattr(bench.Side, "step_of", seeing(bench.Side.step_of, passed))
    file = tmp_path / "rows.json"
    options = "--width 4 --batch-size 16 --threads 1 --sparsity 0.9 --pattern unstructured --activations bfloat16"
    assert _main(["bench", *options.split(), "--json", str(file)]) == 0
    assert [row["activations"] for row in json.loads(file.read_text())] == ["bfloat16"]
    assert "activations bfloat16" in capsys.readouterr().out
    assert passed == ["nchw float32", "channels_last float32", "native bfloat16"]
    for other, says in (
        ("--batch-size 20 --activations bfloat16", "batches of a multiple of 16"),
        ("--model mlp --activations bfloat16", "of model resnet18 alone"),
        ("--activations half", "unknown activations 'half'; allowed: float32, bfloat16"),
    ):
        assert _main(["bench", *other.split()]) == 2
        assert says in capsys.readouterr().err


def seeing(step_of: Any, passed: list[str]) -> Any:
    def seen(self: Side, model: Any) -> Any:
        passed.append(f"{self.variant} {model.activations}")
        return step_of(self, model)

    return seen


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure_all", lambda **_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    assert _main(["bench", "--json", str(tmp_path / "file" / "rows.json")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sparcl: cannot write")


def test_the_theoretical_gain_of_resnet18_is_that_of_its_multiply_adds() -> None:
    """At .95 in sixteen of its layers, less what stem, shortcuts and classifier keep (more so the narrower it is)."""
    assert 14.0 < Side("native", sparsity=0.95, width=16).theoretical_gain() < 15.0
    assert Side("native", sparsity=0.0, width=16).theoretical_gain() == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model vgg", "resnet18, convnet, mlp"),
        ("--batch-size 1", "2 or more"),
        ("--threads 0", "1 or more"),
        ("--threads 99999999999", "1024 or less"),
        ("--width 0", "1 or more"),
        ("--width 100000000000000000000", "65536 or less"),
        ("--sparsity 1.5", "0 to 0.99"),
        ("--pattern diagonal", "unstructured, block"),
        ("--pattern unstructured --block-size 8", "block size 8 goes with pattern block, not unstructured"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(["bench", *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
