"""Figures that compare groups of runs: means with error bars, each group in the style of its row of the table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from sparcl.report.course import Course, course, thinned
from sparcl.report.events import numbers
from sparcl.report.records import Record
from sparcl.report.svg import Series, plot
from sparcl.report.tables import Group, mean_and_spread
from sparcl.scenarios import NAMES

MAX_LINES = 12
"""Groups that a figure can tell apart by colour and mark; those beyond are left out, and the page says so."""


def names(groups: Sequence[Group]) -> list[str]:
    """What each group is called beside the others of its stream."""
    buffers = {g.buffer for g in groups} - {None}
    return [g.label + (f", buffer {g.buffer}" if len(buffers) > 1 and g.buffer is not None else "") for g in groups]


def comparison(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Captions and figures of groups of one stream; what no record holds is left out."""
    drawn = [(f"{name} over tasks", accuracy_over_tasks(groups, key)) for key, name in NAMES.items()]
    drawn += [
        (f"{name} against {label}", accuracy_against(groups, key, section, figure, label))
        for section, figure, label in (
            ("flops", "executed", "FLOPs executed"),
            ("seconds", "train", "seconds of training"),
        )
        for key, name in NAMES.items()
    ]
    drawn += computed_over_time(groups)
    return [(caption, svg) for caption, svg in drawn if svg is not None]


def accuracy_over_tasks(groups: Sequence[Group], scenario: str) -> str | None:
    """Mean accuracy on the tasks seen so far, after each task; bars: one standard deviation where n > 1."""
    series = []
    for i, (g, name) in enumerate(list(zip(groups, names(groups), strict=True))[:MAX_LINES]):
        runs = [seen_so_far(record, scenario) for record in g.records]
        length = min(map(len, runs))
        if length < 2:
            continue
        columns = [mean_and_spread([run[t] for run in runs]) for t in range(length)]
        shift = 0.02 * (i - min(len(groups), MAX_LINES) / 2)  # bars of groups side by side are told apart
        points = [(t + 1 + shift, mean) for t, (mean, _) in enumerate(columns)]
        series.append(Series(name, points, [(None, spread) for _, spread in columns], i))
    label = f"mean {NAMES[scenario]} accuracy on the tasks so far, %"
    return plot(series, label, "tasks learned", label, whole_x=True, percent=True)


def accuracy_against(groups: Sequence[Group], scenario: str, section: str, figure: str, label: str) -> str | None:
    """Accuracy after the last task against a cost (logarithmic); bars: one standard deviation of each."""
    series = []
    for i, (g, name) in enumerate(list(zip(groups, names(groups), strict=True))[:MAX_LINES]):
        cost, accuracy = g.stat(section, figure), g.stat("", scenario)
        series.append(Series(name, [(cost.mean, accuracy.mean)], [(cost.std, accuracy.std)], i, line=False))
    y = f"{NAMES[scenario]} accuracy after the last task, %"
    return plot(series, f"{y} against {label}", label, y, x_log=True)


def computed_over_time(groups: Sequence[Group]) -> list[tuple[str, str | None]]:
    """Active weights and samples in use over training, of each group's first run that kept its events."""
    active: list[Series] = []
    samples: list[Series] = []
    for i, (g, name) in enumerate(list(zip(groups, names(groups), strict=True))[:MAX_LINES]):
        found = next((c for record in g.records if (c := course(record)).active or c.samples), Course())
        for series, trace in ((active, found.active), (samples, found.samples)):
            if points := found.in_tasks(thinned(trace)):
                series.append(Series(name, [*points], style=i, marks=False, steps=True))
    drawn = [("Active weights over training", active, "active prunable weights, %")]
    drawn.append(("Samples in use over training", samples, "samples of the task in use, %"))
    return [(caption, plot(s, caption, "tasks learned", y, whole_x=True)) for caption, s, y in drawn]


def matrix(record: Record, scenario: str) -> list[list[float]] | None:
    """The accuracies after each task (row) on each task (column), percent, or None where they are not all numbers."""
    holder = record.result.get("accuracy_matrix")
    rows = holder.get(scenario) if isinstance(holder, dict) else None
    found = [numbers(row) for row in rows] if isinstance(rows, list) else []
    return [row for row in found if row is not None] if found and None not in found else None


def seen_so_far(record: Record, scenario: str) -> list[float]:
    """Mean accuracy on tasks 1..t after task t."""
    return [statistics.fmean(row[: t + 1]) for t, row in enumerate(matrix(record, scenario) or [])]
