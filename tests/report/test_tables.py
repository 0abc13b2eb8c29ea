"""Grouping over seeds, statistics, and the forms that people and programs read."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import make_run

from sparcl.report import Group, group, load
from sparcl.report.tables import as_csv, as_markdown, as_table, columns, notes, stat

finite = st.floats(-1e6, 1e6)


def groups_of(tmp_path: Path, *runs: dict[str, Any]) -> list[Group]:
    for i, run in enumerate(runs):
        config = run.pop("config", {})
        make_run(tmp_path / f"run{i}", config, **run)
    records, problems = load([tmp_path])
    assert problems == []
    return group(records)


@given(st.lists(finite, min_size=2, max_size=8))
def test_stat_is_the_mean_and_the_sample_deviation(values: list[float]) -> None:
    s = stat(values)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert s.mean == pytest.approx(mean, abs=1e-6)
    assert s.std == pytest.approx(deviation, abs=1e-6)
    assert s.n == len(values)


def test_one_run_has_no_deviation() -> None:
    assert stat([3.0]).std is None
    assert stat([3.0]).text("{:.1f}".format) == "3.0"
    assert stat([3.0, 4.0]).text("{:.1f}".format) == "3.5 ± 0.7"


@pytest.mark.parametrize("values", [[], [None], [1.0, None]])
def test_what_was_not_measured_in_every_run_is_unknown(values: list[float | None]) -> None:
    assert stat(values).mean is None
    assert stat(values).text(str) == "–"


def test_seeds_make_one_group(tmp_path: Path) -> None:
    (g,) = groups_of(tmp_path, *({"config": {"seed": s}, "class_il": 50.0 + s} for s in (2, 0, 1)))
    assert [r.seed for r in g.records] == [0, 1, 2]
    assert (g.stat("", "class_il").mean, g.stat("", "class_il").std) == (51.0, 1.0)
    assert g.share_of_dense.mean == 0.25
    assert g.state.mean == 3 * 2**20
    assert g.settings == ()


@pytest.mark.parametrize(
    "change",
    [
        {"stream": "seq-digits"},
        {"method": "er"},
        {"sparsifier": "rigl"},
        {"sparsity": 0.75},
        {"pattern": "block"},
        {"buffer_size": 500},
    ],
)
def test_each_axis_of_the_table_parts_groups(tmp_path: Path, change: dict[str, Any]) -> None:
    groups = groups_of(tmp_path, {}, {"config": change})
    assert len(groups) == 2
    assert all(g.settings == () for g in groups)


@pytest.mark.parametrize("change", [{"sample_removal": 0}, {"lr": 0.1}, {"epochs": 50}, {"single_head": True}])
def test_any_other_setting_that_differs_parts_groups_and_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    groups = groups_of(tmp_path, {}, {"config": change})
    assert len(groups) == 2
    assert {g.settings[0][0] for g in groups} == set(change)
    assert len({g.label for g in groups}) == 2


def test_settings_of_the_method_are_no_difference_between_methods(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {"config": {"lr": 0.03}}, {"config": {"method": "er", "lr": 0.1}})
    assert [g.settings for g in groups] == [(), ()]
    masked = {"drop_last": True, "first_mask": "random"}
    dense = {"sparsifier": "dense", "drop_last": False}
    assert [g.settings for g in groups_of(tmp_path / "b", {"config": masked}, {"config": dense})] == [(), ()]


def test_a_protocol_that_differs_between_methods_is_named(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {"config": {"epochs": 3}}, {"config": {"method": "er", "epochs": 50}})
    assert sorted(g.settings_text for g in groups) == ["epochs=3", "epochs=50"]


def test_what_most_rows_share_is_said_once(tmp_path: Path) -> None:
    """Ablations change one setting each: the whole method's row is named plainly, each ablation by what it lacks."""
    groups = groups_of(
        tmp_path, {}, {"config": {"sample_removal": 0}}, {"config": {"gradient_sparsity": 0}}, {"config": {"lr": 0.1}}
    )
    assert sorted(g.settings_text for g in groups) == ["", "gradient_sparsity=0", "lr=0.1", "sample_removal=0"]
    usual = "gradient_sparsity=0.2, lr=0.03, sample_removal=0.3"
    assert any(usual in note for note in notes(groups))
    told = {row["other_settings"] for row in csv.DictReader(io.StringIO(as_csv(groups)))}  # which has no notes
    assert told == {usual, *(usual.replace(a, b) for a, b in (("0.2", "0"), ("0.03", "0.1"), ("=0.3", "=0")))}


def test_sparsities_that_are_near_each_other_read_otherwise(tmp_path: Path) -> None:
    asked = (0.9, 0.975, 0.99, 0.995, 0.9951)
    groups = groups_of(tmp_path, *({"config": {"sparsity": value}} for value in asked))
    assert [g.label.split()[2] for g in groups] == ["0.90", "0.975", "0.99", "0.995", "0.9951"]
    shown = [line.split("|")[4].strip() for line in as_markdown(groups).splitlines()[2:7]]
    assert shown == ["0.90", "0.975", "0.99", "0.995", "0.9951"]


def test_the_order_is_that_of_the_field(tmp_path: Path) -> None:
    runs = [
        {"config": {"method": "joint", "sparsifier": "dense"}},
        {"config": {"sparsity": 0.95}},
        {"config": {"sparsity": 0.75}},
        {"config": {"sparsifier": "rigl"}},
        {"config": {"sparsifier": "dense"}},
        {"config": {"method": "finetune", "sparsifier": "dense", "buffer_size": None}},
        {"config": {"method": "er", "sparsifier": "dense"}},
    ]
    assert [g.label for g in groups_of(tmp_path, *runs)] == [
        "finetune dense",
        "er dense",
        "derpp dense",
        "derpp sparcl 0.75",
        "derpp sparcl 0.95",
        "derpp rigl 0.90",
        "joint dense",
    ]


def test_published_figures_stand_beside_dense_runs_alone_and_are_marked(tmp_path: Path) -> None:
    groups = groups_of(
        tmp_path,
        {"config": {"sparsifier": "dense"}},
        {},
        {"config": {"method": "er", "sparsity": 0.75}},
        {"config": {"method": "er", "sparsifier": "dense", "buffer_size": 300}},
    )
    by_label = {g.label: g for g in groups}
    dense = by_label["derpp dense"].published
    assert dense is not None
    assert (dense.class_il, dense.task_il) == ((64.88, 1.17), (91.92, 0.60))
    assert by_label["derpp sparcl 0.90"].published is None
    assert by_label["er dense"].published is None  # no such buffer in print
    assert by_label["er sparcl 0.75"].published_flops == 2.0e15
    assert by_label["derpp sparcl 0.90"].published_flops is None  # recollected only
    headings = [c.heading for c in columns(groups)]
    assert [h for h in headings if "published" in h] == [
        "published Class-IL %",
        "published Task-IL %",
        "published FLOPs",
    ]
    assert any(note.startswith("Published:") for note in notes(groups))


@pytest.mark.parametrize(
    "change",
    [
        {"sample_removal": 0.0},
        {"gradient_sparsity": 0.0},
        {"pattern": "block"},
        {"distribution": "erk"},
        {"prunable": ["conv2"]},
        {"importance": "magnitude"},
    ],
)
def test_published_flops_stand_beside_sparcl_as_published_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    er = {"method": "er", "sparsity": 0.75}
    (group,) = groups_of(tmp_path / "whole", {"config": er})
    assert group.published_flops == 2.0e15
    (group,) = groups_of(tmp_path / "changed", {"config": er | change})
    assert group.published_flops is None


def test_without_published_figures_nothing_speaks_of_them(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {"config": {"stream": "seq-digits"}})
    assert "ublished" not in as_markdown(groups).replace("as published", "")


def test_markdown_has_a_row_for_each_group_and_cannot_be_broken_by_a_setting(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {}, {"config": {"preset": "a|b\n<i>*"}})
    lines = as_markdown(groups).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 2
    cells = {line.replace("\\|", "").count("|") for line in rows}
    assert len(cells) == 1
    assert "<i>" not in "".join(lines)


def test_csv_is_unrounded_and_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {"class_il": 50.123456789, "forgetting": None})
    (row,) = csv.DictReader(io.StringIO(as_csv(groups)))
    assert row["class_il_mean"] == "50.123456789"
    assert row["class_il_std"] == row["forgetting_mean"] == row["published_class_il_mean"] == ""
    assert (row["n"], row["flops_dense_mean"]) == ("1", "4000000000000.0")


def test_the_terminal_table_says_once_what_all_rows_share(tmp_path: Path) -> None:
    table = as_table(groups_of(tmp_path, {}, {"config": {"sparsity": 0.75}}))
    assert "seq-cifar10" in str(table.title)
    assert "stream" not in [c.header for c in table.columns]
    assert table.row_count == 2


def test_hardware_is_named(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, {}, {"config": {"seed": 1}, "environment__cpu": "Other CPU"})
    assert "Some CPU, 1 thread(s), device cpu (1 run(s)); Other CPU" in notes(groups)[-1]
