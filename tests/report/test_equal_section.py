"""The first section of docs/results.md: which records are of which row, and what is said of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from made_runs import make_run

from sparcl.report import load

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("equal_section", EXPERIMENTS / "equal_section.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "equal_section", module)
    spec.loader.exec_module(module)
    return module


def add(section: ModuleType, folder: Path, name: str, row: dict[str, Any], budget: float, *class_il: float) -> None:
    costs = json.loads((section.COSTS / "costs-32.json").read_text())
    settings = {"steps": section.steps(row, budget, costs), "epochs": None, "width": 32, "sample_removal": None}
    usual = {"sparsity": None, "sample_removal": 0.0 if row["sparsifier"] == "sparcl" else None}
    for seed, value in enumerate(class_il):
        make_run(folder / f"{name}-{budget}-{seed}", {**settings, **usual, **row, "seed": seed}, class_il=value)


DENSE = {"method": "derpp", "sparsifier": "dense"}
OURS = {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.9}
STATIC = {"method": "derpp", "sparsifier": "static", "sparsity": 0.9}


def test_the_answer_comes_first_and_aims_are_judged(section: ModuleType, tmp_path: Path) -> None:
    add(section, tmp_path, "dense", DENSE, 1, 29.0, 30.0, 31.0)
    add(section, tmp_path, "ours", OURS, 1, 40.0, 41.0, 42.0)
    add(section, tmp_path, "static", STATIC, 1, 45.0, 46.0, 47.0)
    add(section, tmp_path, "ours", OURS, 2, 44.0)
    lines = section.section(load([tmp_path])[0])
    assert lines[2].startswith("- **With 30 seconds a task**: dense DER++ 30.0 ± 1.0 % Class-IL, SparCL-DER++ .90 41.0")
    assert "(+11.0 points; 3 and 3 runs), by 313 steps for 62" in lines[2]
    told = "\n".join(lines)
    assert "5 points above dense: reached (+11.0 points" in told
    assert "not below static: missed (-5.0 points" in told
    assert "budget 2, 10 points above dense" not in told  # dense was not run there
    assert "| DER++ SparCL 0.9 | 41.0 ± 1.0 / 90.0 ± 0.0 (3) | 44.0 / 90.0 (1) | – | – |" in lines


def test_a_part_left_out_is_a_row_of_its_own(section: ModuleType, tmp_path: Path) -> None:
    add(section, tmp_path, "ours", OURS, 2, 40.0)
    add(section, tmp_path, "part", {**OURS, "gradient_sparsity": 0.0}, 2, 50.0)
    add(section, tmp_path, "head", {**OURS, "single_head": True}, 2, 60.0)
    rows = [line for line in section.section(load([tmp_path])[0]) if line.startswith("| DER++")]
    assert [row.split("|")[1:4:2] for row in rows] == [
        [" DER++ SparCL 0.9 ", " 40.0 / 90.0 (1) "],
        [" DER++ SparCL 0.9, single head ", " 60.0 / 90.0 (1) "],
        [" DER++ SparCL 0.9, gradient sparsity 0.0 ", " 50.0 / 90.0 (1) "],
    ]


def test_the_figure_is_a_file_of_its_own(section: ModuleType, tmp_path: Path) -> None:
    add(section, tmp_path, "dense", DENSE, 1, 29.0, 31.0)
    add(section, tmp_path, "ours", OURS, 1, 40.0, 42.0)
    drawn = ElementTree.fromstring(section.figure(load([tmp_path])[0]))
    words = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"dense", "SparCL", "seconds of training a task"} <= set(words)
    assert section.figure([]) is None
