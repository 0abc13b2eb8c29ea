"""The page: self-contained, escaped, with figures of what the records hold. test_browser.py looks at it."""

from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import PICTURE, course_of, make_run, rich_run

from sparcl.errors import ConfigError
from sparcl.report import Group, figures, group, load
from sparcl.report.course import course
from sparcl.report.detail import Detail
from sparcl.report.page import page
from sparcl.report.records import Record
from sparcl.report.svg import heat_map


def made(tmp_path: Path, **changes: Any) -> list[Group]:
    for seed in (0, 1):
        rich_run(tmp_path / f"s{seed}", {"seed": seed}, **changes)
    return group(load([tmp_path])[0])


def record(path: Path) -> Record:
    return load([path])[0][0]


class Addresses(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "poster")]


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    html = page(made(tmp_path), [])
    reader = Addresses()
    reader.feed(html)
    assert reader.found
    assert set(reader.found) == {PICTURE}
    assert "<script" not in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_several_runs_are_means_with_their_spread(tmp_path: Path) -> None:
    rich_run(tmp_path / "s0", {"seed": 0}, class_il=50.0)
    rich_run(tmp_path / "s1", {"seed": 1}, class_il=52.0)
    html = page(group(load([tmp_path])[0]), [])
    assert "51.00 ± 1.41" in html
    assert html.count("derpp sparcl 0.90, n=2") >= 2  # the legend, once, and the rows of the tables
    for caption in ("Class-IL against FLOPs executed", "Class-IL against seconds of training", "Task-IL over tasks"):
        assert f"<figcaption>{caption}</figcaption>" in html


def test_one_run_is_told_in_words_beside_the_dense_cost(tmp_path: Path) -> None:
    html = page(group(load([rich_run(tmp_path / "run")])[0]), [])
    assert "recognizes 50.00 % without being told the task (Class-IL), and 90.00 % when told the task (Task-IL)" in html
    assert (
        "Training executed 1 T floating-point operations: 25 % of the dense network&#39;s 4 T, 4 times fewer." in html
    )
    assert "took 13.5 s, 12 s of them training" in html
    assert "sparcl run --config" in html
    assert "gradient_sparsity = 0.2" in html  # of the settings


def test_costs_by_phase(tmp_path: Path) -> None:
    detail = Detail("run", record(rich_run(tmp_path / "run")))
    told = {title: {bar.name: bar.text for bar in bars} for title, bars in detail.costs}
    assert told["FLOPs executed, by phase"]["forward passes"] == "400 G"
    assert told["Seconds, by phase"] == {
        "steps of training": "10 s",
        "ranking weights and gradients": "2 s",
        "evaluation": "1 s",
        "reading, saving, the rest": "0.5 s",
    }
    assert told["Bytes held between steps"]["optimizer"] == "0 B"


def test_pictures_that_are_not_inside_the_page_are_not_shown(tmp_path: Path) -> None:
    run = rich_run(tmp_path / "run")
    elsewhere = [
        "http://example.com/a.png",
        "data:image/svg+xml;base64,AAAA",
        PICTURE + '"',
        7,
        "data:image/png;base64," + "A" * 30_000,
    ]
    shown = [{"id": i, "label": "x", "image": image} for i, image in enumerate([*elsewhere, PICTURE])]
    split = {"removed": {"count": 6, "shown": shown}, "kept": {"count": 0, "shown": []}}
    (run / "samples.json").write_text(json.dumps({"tasks": [{"task": 0, **split}, {"task": None}, 3]}))
    (pictures,) = Detail("run", record(run)).pictures
    assert pictures.groups == (("removed", 6, (("x", PICTURE),)), ("kept", 0, ()))
    (run / "samples.json").write_text("{")
    assert Detail("run", record(run)).pictures == []


def test_the_same_records_make_the_same_page(tmp_path: Path) -> None:
    groups = made(tmp_path)
    assert page(groups, []) == page(groups, [])


def test_what_a_record_says_is_text_not_html(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"preset": "<script>alert(1)</script>"})
    make_run(tmp_path / "b")
    html = page(group(load([tmp_path])[0]), [])
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "run", accuracy_matrix={"class_il": None, "task_il": "damaged"}, class_il=None)
    html = page(group(load([tmp_path])[0]), [])
    assert 'class="figure"' not in html


def test_more_rows_than_a_figure_can_tell_apart_are_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(figures.MAX_LINES + 2):
        make_run(tmp_path / f"{i:02}", {"sparsity": 0.5 + i / 100}, flops__executed=1e12 + i * 1e11)
    groups = group(load([tmp_path])[0])
    assert f"the first {figures.MAX_LINES} of {len(groups)} rows" in page(groups, [])
    svg = figures.accuracy_over_tasks(groups, "class_il")
    assert svg is not None
    assert svg.count("<path") == figures.MAX_LINES


def test_the_course_is_by_steps_and_by_tasks(tmp_path: Path) -> None:
    found = course(record(rich_run(tmp_path / "run", tasks=2)))
    assert found.starts == [0, 20]
    assert found.end == 40
    assert found.loss == [(10.0, 2.0), (20.0, 1.0), (None, None), (30.0, 2.0), (40.0, 1.0)]
    assert found.samples[:3] == [(0.0, 100.0), (5.0, 90.0), (15.0, 80.0)]
    assert found.in_tasks(found.active) == [(0.25, 11.0), (0.75, 10.0), (1.25, 11.0), (1.75, 10.0), (2.0, 10.0)]
    assert [task["classifier"] for task in found.masks] == [(10.0, None), (11.0, 80.0)]


def test_a_resume_noted_anywhere_counts_no_step(tmp_path: Path) -> None:
    events = course_of(2, ["layer"])
    noted = [*events[:6], {"event": "run.resume", "task": 0, "epoch": 0, "step": 400}, *events[6:]]
    one, two = (course(record(make_run(tmp_path / str(i), {}, e))) for i, e in enumerate((events, noted)))
    assert one == two


def test_a_missing_package_is_one_line_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = made(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    with pytest.raises(ConfigError, match=r"format html needs jinja2: pip install 'sparcl-edge\[report\]'"):
        page(groups, [])


def test_a_heat_map_has_numbers_in_all_its_cells_or_in_none() -> None:
    for size, told in ((5, True), (30, False)):
        names = [str(i) for i in range(size)]
        svg = heat_map([[100.0 if i == j else 0.0 for j in names] for i in names], names, names, "made")
        assert svg is not None
        assert svg.count('class="heat"') == size**2
        assert svg.count('class="ink') == (size**2 if told else 0)
