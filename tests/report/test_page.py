"""The page: self-contained, escaped, with figures of what the records hold."""

from __future__ import annotations

import base64
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run

from sparcl.errors import ConfigError
from sparcl.report import Group, figures, group, load
from sparcl.report.page import page

EVENTS: list[dict[str, Any]] = [
    {"event": "task.begin", "task": 0, "epoch": 0, "step": 0, "samples": 200},
    {"event": "epoch.begin", "task": 0, "epoch": 0, "step": 0, "steps": 10},
    {"event": "tdm.update", "task": 0, "epoch": 1, "step": 5, "active": 100},
    {"event": "ddr.remove", "task": 0, "epoch": 1, "step": 5, "removed": 60, "kept": 140},
    {"event": "tdm.expand", "task": 1, "epoch": 0, "step": 0, "active": 110},
    {"event": "run.end", "task": 1, "epoch": 2, "step": 10},
]


def made(tmp_path: Path, **changes: Any) -> list[Group]:
    for seed in (0, 1):
        make_run(tmp_path / f"s{seed}", {"seed": seed}, EVENTS, **changes)
    return group(load([tmp_path])[0])


class Addresses(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_fetches_nothing_and_holds_every_figure(tmp_path: Path) -> None:
    html = page(made(tmp_path), [])
    reader = Addresses()
    reader.feed(html)
    assert len(reader.found) == 3
    assert all(address.startswith("data:image/svg+xml;base64,") for address in reader.found)
    drawn = [base64.b64decode(address.partition(",")[2]).decode() for address in reader.found]
    assert all("</svg>" in svg for svg in drawn)
    assert "<script" not in html
    assert "50.00 ± 0.00" in html


def test_the_same_records_make_the_same_page(tmp_path: Path) -> None:
    groups = made(tmp_path)
    assert page(groups, []) == page(groups, [])


def test_what_a_record_says_is_text_not_html(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"scenario": "<script>alert(1)</script>"})
    make_run(tmp_path / "b")
    html = page(group(load([tmp_path])[0]), [])
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "run", accuracy_matrix={"class_il": None, "task_il": "damaged"}, class_il=None)
    html = page(group(load([tmp_path])[0]), [])
    assert "<img" not in html


def test_more_rows_than_a_figure_can_tell_apart_are_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(figures.MAX_LINES + 2):
        make_run(tmp_path / f"{i:02}", {"sparsity": 0.5 + i / 100}, flops__executed=1e12 + i * 1e11)
    groups = group(load([tmp_path])[0])
    for draw in (figures.accuracy_over_tasks, figures.accuracy_against_flops):
        svg = draw(groups)
        assert svg is not None
        assert f"the first {figures.MAX_LINES} of {len(groups)} rows" in re.sub(r"\s+", " ", svg)


def test_event_traces_are_in_tasks_and_percent(tmp_path: Path) -> None:
    (record, *_), _ = load([make_run(tmp_path / "run", {"epochs": 2}, EVENTS)])
    traces = figures.event_traces(record)
    assert traces["active"] == [(0.75, 10.0), (1.0, 11.0), (2.0, 11.0)]
    assert traces["samples"] == [(0.0, 100.0), (0.75, 70.0), (2.0, 70.0)]


def test_a_resumed_run_draws_in_the_order_of_training(tmp_path: Path) -> None:
    again = [*EVENTS[:4], {"event": "run.resume", "task": 0, "epoch": 0, "step": 3}, *EVENTS[2:]]
    (record, *_), _ = load([make_run(tmp_path / "run", {"epochs": 2}, again)])
    moments = [x for x, _ in figures.event_traces(record)["active"]]
    assert moments == sorted(moments)


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_a_missing_package_is_one_line_with_the_extra(
    tmp_path: Path, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = made(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ConfigError, match=rf"format html needs {absent}: pip install 'sparcl-edge\[report\]'"):
        page(groups, [])
