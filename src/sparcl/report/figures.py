"""Figures of a report, each as an SVG document: accuracy over tasks, accuracy against FLOPs, what was computed when."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparcl.report.records import Record
from sparcl.report.tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 12
"""Lines that a figure can tell apart by colour and style; those beyond are left out, and the figure says so."""

SVG_FACTS = {"Date": None, "Creator": None}


def accuracy_over_tasks(groups: Sequence[Group]) -> str | None:
    """Mean accuracy on the tasks seen so far, after each task; a band of one standard deviation where n > 1."""
    curves = [(g, c) for g in groups if (c := [_seen_so_far(r) for r in g.records]) and all(len(x) > 1 for x in c)]
    if not curves:
        return None
    figure, axes = _new("tasks learned", "mean accuracy on the tasks so far, Class-IL %")
    for i, (g, runs) in enumerate(curves[:MAX_LINES]):
        length = min(len(run) for run in runs)
        tasks = range(1, length + 1)
        columns = [[run[t] for run in runs] for t in range(length)]
        means = [statistics.fmean(c) for c in columns]
        (line,) = axes.plot(tasks, means, label=f"{g.label}, n={len(runs)}", **_style(i))
        if len(runs) > 1:
            spread = [statistics.stdev(c) for c in columns]
            low, high = zip(*((m - s, m + s) for m, s in zip(means, spread, strict=True)), strict=True)
            axes.fill_between(tasks, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xticks(range(1, max(len(run) for _, runs in curves for run in runs) + 1))
    return _svg(figure, axes, len(curves))


def accuracy_against_flops(groups: Sequence[Group]) -> str | None:
    """Class-IL after the last task against the FLOPs that were executed (logarithmic); bars: one standard deviation."""
    stats = [(g, g.stat("flops", "executed").mean, g.stat("", "class_il")) for g in groups]
    points = [(g, flops, y.mean, y.std) for g, flops, y in stats if flops and y.mean is not None]
    if not points:
        return None
    figure, axes = _new("training FLOPs executed", "Class-IL %")
    axes.set_xscale("log")
    shown = [flops for _, flops, _, _ in points[:MAX_LINES]]
    axes.set_xlim(min(shown) / 1.6, max(shown) * 1.6)  # matplotlib finds no range where all are equal
    for i, (g, flops, mean, std) in enumerate(points[:MAX_LINES]):
        style = _style(i) | {"linestyle": "none", "marker": "os^Dvp"[i % 6], "capsize": 3}
        axes.errorbar([flops], [mean], yerr=None if std is None else [std], label=g.label, **style)
    return _svg(figure, axes, len(points))


def computed_over_time(groups: Sequence[Group]) -> str | None:
    """Active prunable weights and samples in use over training, of each group's first run that kept its events."""
    runs = [(g, traces) for g in groups if (traces := _first_traces(g.records))]
    if not runs:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for i, (g, traces) in enumerate(runs[:MAX_LINES]):
        for axes, trace in ((upper, traces["active"]), (lower, traces["samples"])):
            if trace:
                x, y = zip(*trace, strict=True)
                axes.step(x, y, where="post", label=g.label, **_style(i))
    upper.set_ylabel("active prunable weights, %")
    lower.set_ylabel("samples of the task in use, %")
    lower.set_xlabel("tasks learned")
    return _svg(figure, upper if upper.get_legend_handles_labels()[0] else lower, len(runs))


def _first_traces(records: Sequence[Record]) -> dict[str, list[tuple[float, float]]] | None:
    for record in records:
        traces = event_traces(record)
        if traces["active"] or traces["samples"]:
            return traces
    return None


def event_traces(record: Record) -> dict[str, list[tuple[float, float]]]:
    """(tasks learned, percent) of active weights and of samples in use, from a run's events."""
    prunable = _number(record.result["sparsity"], "prunable")
    epochs = record.config.get("epochs") or 1
    active: list[tuple[float, float]] = []
    samples: list[tuple[float, float]] = []
    in_task: float = 0
    steps: float = 0
    for event in record.events():
        where = _position(event, epochs, steps)
        if where is None:
            continue
        if event["event"] == "task.begin":
            in_task = _number(event, "samples")
            if in_task:
                samples.append((where, 100.0))
        elif event["event"] == "epoch.begin":
            steps = _number(event, "steps")
        if event["event"].startswith("tdm.") and prunable and _number(event, "active"):
            active.append((where, 100 * _number(event, "active") / prunable))
        if event["event"] == "ddr.remove" and in_task:
            samples.append((where, 100 * _number(event, "kept") / in_task))
        if event["event"] == "run.end":
            for trace in (active, samples):
                trace += [(float(event["task"] + 1), trace[-1][1])] if trace else []
    # A resumed run repeats the events since its checkpoint, with the same figures: in order of training they coincide.
    return {"active": sorted(active, key=_when), "samples": sorted(samples, key=_when)}


def _when(point: tuple[float, float]) -> float:
    return point[0]


def _position(event: dict[str, Any], epochs: int, steps: float) -> float | None:
    """Where in training an event happened, in tasks; None for an event without a position."""
    if not all(isinstance(event.get(k), int) for k in ("task", "epoch", "step")):
        return None
    within = event["step"] / steps if steps else 0.0
    return float(event["task"] + min(1.0, (event["epoch"] + within) / epochs))


def _number(event: dict[str, Any], key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _seen_so_far(record: Record) -> list[float]:
    """Mean Class-IL accuracy on tasks 1..t after task t, from the accuracy matrix (rows: after each task)."""
    matrix = record.result.get("accuracy_matrix")
    rows = matrix.get("class_il") if isinstance(matrix, dict) else None
    try:
        return [statistics.fmean(row[: t + 1]) for t, row in enumerate(rows or [])]
    except (TypeError, ValueError, statistics.StatisticsError):
        return []


def _new(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _style(i: int) -> dict[str, Any]:
    """Colours that colour-blind readers tell apart (Okabe and Ito), then the same with another line."""
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    return {"color": colours[i % len(colours)], "linestyle": ("-", "--")[i // len(colours) % 2]}


def _svg(figure: Figure, axes: Axes, count: int) -> str:
    import matplotlib

    handles, labels = axes.get_legend_handles_labels()
    title = f"the first {MAX_LINES} of {count} rows of the table" if count > MAX_LINES else None
    side_by_side = 2 if max(map(len, labels)) < 45 else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * len(labels) / side_by_side)
    figure.legend(handles, labels, fontsize="small", title=title, loc="outside lower center", ncols=side_by_side)
    for each in figure.axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sparcl"}):  # the same records, the same bytes
        figure.savefig(out, format="svg", metadata=SVG_FACTS)
    return out.getvalue()
