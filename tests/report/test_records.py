"""Finding and reading records: what is damaged or unfinished is told, and does not stop the rest."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from made_runs import make_run

import sparcl.report
from sparcl.report import group, load
from sparcl.report.detail import Detail
from sparcl.report.records import UNUSED_BY_DENSE
from sparcl.run.combination import OF_SPARSE


def test_finds_runs_given_directly_or_in_folders_and_counts_each_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "grid" / "inner" / f"seed{seed}", {"seed": seed})
    records, problems = load([tmp_path / "grid", tmp_path / "grid" / "inner" / "seed0"])
    assert [r.seed for r in records] == [0, 1]
    assert problems == []


def test_does_not_look_inside_a_run_for_more(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(run / "checkpoint" / "step-1", {"seed": 1})
    records, problems = load([tmp_path])
    assert [r.path for r in records] == [run]
    assert problems == []


def test_the_same_settings_and_seed_count_once_wherever_the_data_lies(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", {"data": "/here"})
    again = make_run(tmp_path / "b", {"data": "/there"})
    records, problems = load([tmp_path])
    assert [r.path for r in records] == [first]
    assert [(p.path, str(first) in p.reason) for p in problems] == [(again, True)]


def test_other_data_is_another_run_and_another_row(tmp_path: Path) -> None:
    for name, data, seed in (("a", "1" * 64, 0), ("b", "2" * 64, 0), ("c", "1" * 64, 1), ("d", "2" * 64, 0)):
        make_run(tmp_path / name, {"seed": seed}, data={"fingerprint": data})
    records, problems = load([tmp_path])
    assert [r.path.name for r in records] == ["a", "b", "c"]
    assert [(p.path.name, str(tmp_path / "b") in p.reason) for p in problems] == [("d", True)]
    rows = [(g.settings_text, [r.path.name for r in g.records]) for g in group(records)]
    assert rows == [("data=11111111", ["a", "c"]), ("data=22222222", ["b"])]


@pytest.mark.parametrize("old", ["a", "z"])
def test_a_record_from_before_data_was_named_still_reads_and_counts_no_seed_twice(tmp_path: Path, old: str) -> None:
    make_run(tmp_path / old)
    make_run(tmp_path / "n", data={"fingerprint": "1" * 64})
    make_run(tmp_path / "o", {"seed": 1}, data={"fingerprint": "1" * 64})
    make_run(tmp_path / "p", {"seed": 2})
    records, problems = load([tmp_path])
    assert {r.path.name for r in records} == {"n", "o", "p"}
    assert [p.path.name for p in problems] == [old]
    assert [len(g.records) for g in group(records)] == [3]


@pytest.mark.parametrize("data", ["x", {}, {"fingerprint": 3}])
def test_a_fingerprint_that_is_none_is_told(tmp_path: Path, data: object) -> None:
    make_run(tmp_path / "run", data=data)
    records, problems = load([tmp_path])
    assert records == []
    assert "data.fingerprint is not a name" in problems[0].reason


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("config.toml", "result.json"):
        (run / name).write_bytes(b"\xef\xbb\xbf" + (run / name).read_bytes())
    assert [r.path for r in load([tmp_path])[0]] == [run]


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"sparsifier": "dense"}, {"pattern": "block"}),
        ({"sparsifier": "dense"}, {"block_size": 8, "distribution": "erk", "prunable": ["nothing"]}),
        ({}, {"block_size": 8}),
    ],
)
def test_settings_that_a_run_never_looked_at_make_no_second_seed_and_no_second_row(
    tmp_path: Path, config: dict[str, object], changes: dict[str, object]
) -> None:
    make_run(tmp_path / "a", config)
    make_run(tmp_path / "b", {**config, **changes})
    make_run(tmp_path / "c", {**config, **changes, "seed": 1})
    records, problems = load([tmp_path])
    assert [r.path.name for r in records] == ["a", "c"]
    assert [p.path.name for p in problems] == ["b"]
    assert [len(g.records) for g in group(records)] == [2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", b"{", "not a JSON object"),
        ("result.json", b"[]", "not a JSON object"),
        ("result.json", b"[" * 100_000, "not a JSON object"),
        ("result.json", b"\xff\xfe", "cannot be read"),
        ("result.json", b"{}", "no benchmark"),
        ("result.json", b'{"class_il": 1' + b"0" * 400 + b"}", "not a JSON object"),
        ("config.toml", b'sparsity = "x"', "config.toml is damaged: sparsity is not a number"),
        ("config.toml", b"sparsity = nan", "config.toml is damaged: sparsity is not a number"),
        ("config.toml", b"buffer_size = [1]", "config.toml is damaged: buffer_size is not a number"),
        ("config.toml", b"buffer_size = 1.5", "config.toml is damaged: buffer_size is not a number"),
        ("config.toml", b"epochs = {}", "config.toml is damaged: epochs is not a number"),
        ("config.toml", b"= 1", "config.toml is damaged"),
        ("config.toml", b"\xff", "config.toml is damaged"),
    ],
)
def test_damaged_files_are_a_problem_of_their_run_alone(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    good = make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", {"seed": 1})
    (bad / name).write_bytes(content)
    records, problems = load([tmp_path])
    assert [r.path for r in records] == [good]
    assert [p.path for p in problems] == [bad]
    assert reason in problems[0].reason
    assert "\n" not in str(problems[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_il": "high"}, "class_il is not a number"),
        ({"class_il": True}, "class_il is not a number"),
        ({"seed": 1.5}, "seed is not a whole number"),
        ({"method": 3}, "method is not a name"),
        ({"flops": None}, "no section flops"),
        ({"flops__executed": float("nan")}, "flops.executed is not a number"),
        ({"seconds": {"train": 1.0}}, "no seconds.total"),
    ],
)
def test_a_result_with_wrong_figures_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    make_run(tmp_path / "run", **changes)
    records, problems = load([tmp_path])
    assert records == []
    assert [p.reason for p in problems] == [f"result.json is damaged: {reason}"]


def test_unmeasured_figures_are_none_not_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "run", class_il=None, flops__executed=None)
    ((record,), problems) = load([tmp_path])
    assert problems == []
    assert record.figure("", "class_il") is None
    assert record.figure("flops", "executed") is None
    assert record.figure("flops", "paper") == 0.5e12


def test_unfinished_missing_and_empty_places_are_told(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    bare = make_run(tmp_path / "bare")
    (bare / "config.toml").unlink()
    places = [tmp_path / name for name in ("unfinished", "empty", "file", "absent", "bare")]
    records, problems = load(places)
    assert records == []
    by_place = {p.path.name: p.reason for p in problems}
    assert by_place["unfinished"].startswith("not finished")
    assert by_place["empty"].startswith("holds no run")
    assert by_place["file"] == "not a directory"
    assert by_place["absent"] == "no such directory"
    assert by_place["bare"] == "no config.toml"


def test_events_leave_out_damaged_lines(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", events=[{"event": "task.begin"}])
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"event": 3}\n[]\n\xff\xfe\n{"event": "run.end"}\n{"event": "cut')
    ((record,), _) = load([run])
    assert [e["event"] for e in record.events()] == ["task.begin", "run.end"]


def test_a_run_without_events_has_none(tmp_path: Path) -> None:
    ((record,), _) = load([make_run(tmp_path / "run")])
    assert list(record.events()) == []


def test_reports_import_nothing_that_computes() -> None:
    """Records can be read where nothing can be trained: no module of the folder imports torch or what needs it."""
    allowed = {
        "sparcl.errors",
        "sparcl.outputs",
        "sparcl.regular",
        "sparcl.published",
        "sparcl.report",
        "sparcl.scenarios",
    }
    for file in Path(sparcl.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{a.name}" for a in node.names]
            for name in names:
                assert name.split(".")[0] not in ("torch", "safetensors"), f"{file.name} imports {name}"
                inside = name.split(".")[0] == "sparcl"
                assert not inside or ".".join(name.split(".")[:2]) in allowed, f"{file.name} imports {name}"


def test_made_runs_hold_what_a_run_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"seed": 4}, class_il=1.5)
    result = json.loads((run / "result.json").read_text())
    assert (result["seed"], result["class_il"]) == (4, 1.5)


def test_what_a_dense_run_never_looked_at_is_what_its_configuration_may_not_name() -> None:
    assert UNUSED_BY_DENSE == OF_SPARSE  # twice, as the report imports no torch


@pytest.mark.parametrize("name", ["config.toml", "result.json"])
def test_a_pipe_in_place_of_a_record_is_told_and_not_waited_for(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    (problem,) = load([run])[1]
    assert problem.reason == f"{name} is not a regular file"


def test_events_and_pictures_that_are_a_pipe_are_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("events.jsonl", "samples.json"):
        os.mkfifo(run / name)
    (record,) = load([run])[0]
    assert list(record.events()) == []
    assert Detail("run", record).pictures == []
