"""docs/results.md: claims are judged from the records alone, with their noise; what was not run is not claimed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_runs import make_run

from sparcl.report import load

SCRIPT = Path(__file__).parents[2] / "experiments" / "results.py"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "results", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(folder: Path, name: str, config: dict[str, Any], *class_il: float) -> None:
    for seed, value in enumerate(class_il):
        make_run(folder / f"{name}{seed}", {**config, "seed": seed}, class_il=value)


def compared(results: ModuleType, folder: Path, margin: float = 0.0) -> Any:
    claim = results.Claim("sparse", results.run("derpp", "sparcl", 0.9), results.run("derpp"), margin)
    return results.compare(claim, load([folder])[0])


DENSE = {"sparsifier": "dense", "sparsity": None}


@pytest.mark.parametrize(
    ("sparse", "dense", "margin", "verdict", "cell"),
    [
        ((52.0, 52.2, 51.8), (50.0, 50.1, 49.9), 0.0, "holds", "+2.00 ± 0.13"),
        ((50.0, 53.0, 50.0), (50.0, 50.1, 49.9), 0.0, "holds, within noise", "+1.00 ± 1.00"),
        ((49.5, 49.6, 49.4), (50.0, 50.1, 49.9), 0.0, "missed", "-0.50 ± 0.08"),
        ((49.5, 49.6, 49.4), (50.0, 50.1, 49.9), 1.0, "holds", "-0.50 ± 0.08"),
        ((51.0, 53.0, 52.0), (50.0, 50.5, 49.5), 0.0, "holds, within noise", "+2.00 ± 0.65"),  # 3.1 errors, p = .06
        ((52.0, 52.0), (50.0, 50.0), 0.0, "holds", "+2.00 ± 0.00"),
        ((52.0,), (50.0,), 0.0, "holds, within noise", "+2.00"),
    ],
)
def test_a_claim_is_clear_where_chance_would_hardly_do_it(
    results: ModuleType,
    tmp_path: Path,
    sparse: tuple[float, ...],
    dense: tuple[float, ...],
    margin: float,
    verdict: str,
    cell: str,
) -> None:
    rows(tmp_path, "sparse", {}, *sparse)
    rows(tmp_path, "dense", DENSE, *dense)
    comparison = compared(results, tmp_path, margin)
    assert comparison.verdict("class_il") == verdict
    assert comparison.cell("class_il") == cell
    assert comparison.seeds == (len(sparse), len(dense))


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        *((0.0, 3, 1.0), (1.0, 1, 0.5), (12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (-2.776, 4, 0.05)),
        *((4.604, 4, 0.01), (2.0, 60, 0.05), (2.5, 2, 0.1296), (1.984, 100, 0.05)),
    ],
)
def test_p_is_that_of_the_tables_of_students_t(results: ModuleType, t: float, freedom: float, p: float) -> None:
    assert results.student(t, freedom) == pytest.approx(p, abs=2e-4)


def test_pooled_rows_count_every_run_and_need_every_row(results: ModuleType, tmp_path: Path) -> None:
    pooled = results.Claim(
        "pooled", [results.run("derpp", "sparcl", s) for s in (0.75, 0.9)], [results.run("derpp")], 0.0
    )
    rows(tmp_path, "dense", DENSE, 50.0, 50.1, 49.9)
    rows(tmp_path, "sparse", {}, 52.0, 54.0)
    assert results.compare(pooled, load([tmp_path])[0]).seeds == (0, 0)
    rows(tmp_path, "denser", {"sparsity": 0.75}, 56.0, 58.0)
    comparison = results.compare(pooled, load([tmp_path])[0])
    assert comparison.seeds == (4, 3)
    assert comparison.difference["class_il"] == pytest.approx(5.0)


def test_ablations_do_not_count_as_the_method(results: ModuleType, tmp_path: Path) -> None:
    rows(tmp_path, "sparse", {}, 52.0)
    rows(tmp_path, "ablation", {"sample_removal": 0.0}, 99.0)
    rows(tmp_path, "dense", DENSE, 50.0)
    assert compared(results, tmp_path).difference["class_il"] == 2.0


def test_what_was_not_run_is_not_claimed(results: ModuleType, tmp_path: Path) -> None:
    rows(tmp_path, "dense", DENSE, 50.0)
    comparison = compared(results, tmp_path)
    assert (comparison.verdict("class_il"), comparison.cell("class_il")) == ("not run", "–")


def test_the_page_begins_with_a_summary_of_what_holds(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    rows(runs, "sparse", {}, 52.0, 52.2, 51.8)
    rows(runs, "dense", DENSE, 50.0, 50.1, 49.9)
    (runs / "begun").mkdir()
    (runs / "begun" / "config.toml").write_text("")
    monkeypatch.setattr(results, "RECORDS", tmp_path / "results")
    assert results.collect(runs, "table1-small") == 6
    kept = {p.name for p in (tmp_path / "results").rglob("*") if p.is_file()}
    assert kept == {"config.toml", "result.json"}
    text = results.page()
    assert "reproduced clearly: SparCL-DER++ at 0.90 is not below dense DER++." in text
    assert "6 run(s), seeds 0, 1, 2; 2 of 2 rows have every seed." in text
    assert "Some CPU, 1 thread(s)" in text
    assert "have no records yet" in text
    assert text.index("### Summary") < text.index("### Claims") < text.index("### Table")
    assert "| derpp | sparcl | 0.90 |" in text
