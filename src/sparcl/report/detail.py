"""All that the page shows of one run: accuracy, what was computed, samples that left, costs, how to repeat it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparcl import regular
from sparcl.report import words
from sparcl.report.course import Course, course
from sparcl.report.events import number, numbers, parse
from sparcl.report.figures import MAX_LINES, matrix
from sparcl.report.records import CONFIG, Record
from sparcl.report.svg import MOST_CELLS, Series, heat_map, plot
from sparcl.scenarios import NAMES

SAMPLES = "samples.json"
MOST_BYTES = 4 << 20
"""Of a file of pictures or settings; a larger one is not ours."""

MOST_PICTURES, MOST_ADDRESS = 12, 20_000
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")

Figure = tuple[str, str]
"""A caption and an SVG."""


@dataclass(frozen=True)
class Pictures:
    """Of one task: how many samples left and stayed, and pictures (label, address) of some of each."""

    task: int
    groups: tuple[tuple[str, int, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class ClassRow:
    """A class by name, the share of its test samples that is recognized, percent."""

    name: str
    accuracy: float


class Detail:
    """One run for the page.

    Args:
        label: what the run is called in the report.
    """

    def __init__(self, label: str, record: Record) -> None:
        self.label, self.record = label, record
        self.summary = words.summary(record)
        self.against = words.against_dense(record)
        self.costs = [
            ("FLOPs executed, by phase", words.flops_bars(record)),
            ("Seconds, by phase", words.seconds_bars(record)),
            ("Bytes held between steps", words.bytes_bars(record)),
        ]

    @cached_property
    def course(self) -> Course:
        return course(self.record)

    @property
    def accuracy(self) -> list[Figure]:
        """Heat maps of the accuracy matrices, each task's accuracy over time, the loss."""
        drawn: list[tuple[str, str | None]] = []
        for key, name in self.record.scenarios.items():
            rows = matrix(self.record, key)
            if rows is None:
                continue
            tasks = [f"task {t + 1}" for t in range(max(len(rows), *map(len, rows)))]
            after = [f"after {t + 1}" for t in range(len(rows))]
            drawn.append((f"{name} accuracy, % of the test samples", heat_map(rows, after, tasks, name)))
            drawn.append((f"{name} accuracy of each task over time", _task_lines(rows, name)))
        losses = [Series("loss", [*self.course.loss], marks=len(self.course.loss) < 30)]
        loss = plot(losses, "training loss", "training steps", "mean loss", borders=self.course.starts[1:])
        drawn.append(("Training loss; upright lines: a task begins", loss))
        return [(caption, svg) for caption, svg in drawn if svg is not None]

    @property
    def task_count(self) -> int:
        """Lines of the figures of each task."""
        return min(MAX_LINES, max((len(matrix(self.record, key) or []) for key in NAMES), default=0))

    @property
    def _per_class(self) -> dict[str, Any]:
        told = self.record.result.get("per_class")
        return told if isinstance(told, dict) else {}

    @property
    def class_names(self) -> list[str]:
        found = self._per_class.get("names")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def classes(self) -> list[ClassRow]:
        """Accuracy by class."""
        told = self._per_class.get("accuracy")
        found = [number(v) for v in told] if isinstance(told, list) else []
        return [ClassRow(n, v) for n, v in zip(self.class_names, found, strict=False) if v is not None]

    @property
    def confusion(self) -> Figure | None:
        """Which class was taken for which, in percent of each; None above what a figure can show."""
        told = self._per_class.get("confusion")
        rows = [numbers(row) for row in told] if isinstance(told, list) else []
        names = self.class_names
        size = len(rows)
        if not 0 < size <= min(MOST_CELLS, len(names)) or any(row is None or len(row) != size for row in rows):
            return None
        shares = [[100 * v / total if (total := sum(row or [])) else None for v in row or []] for row in rows]
        svg = heat_map(shares, names, names, "confusion matrix")
        return None if svg is None else ("Confusion: of a class's test samples (row), % taken for each class", svg)

    @property
    def sparsity(self) -> list[Figure]:
        """Density and overlap by layer and task, and what was computed over time."""
        masks = self.course.masks
        layers = list(dict.fromkeys(name for task in masks for name in task))[:MOST_CELLS]
        tasks = [f"task {t + 1}" for t in range(len(masks))]
        drawn: list[tuple[str, str | None]] = []
        shown = [f"layer {name}" if name.isdecimal() else name for name in layers]
        if layers:
            density = [[task[name][0] if name in task else None for task in masks] for name in layers]
            overlap = [[task[name][1] if name in task else None for task in masks[1:]] for name in layers]
            most = max((v for row in density for v in row if v is not None), default=0.0) or 1.0
            caption = "Density of each layer at the end of each task, %"
            drawn.append((caption, heat_map(density, shown, tasks, caption, most=most)))
            caption = "Overlap: % of a layer's active weights that each task left active"
            drawn.append((caption, heat_map(overlap, shown, tasks[1:], caption)))
        for caption, trace in (
            ("Active prunable weights, %", self.course.active),
            ("Samples of the task in use, %", self.course.samples),
        ):
            series = [Series(caption, [*self.course.in_tasks(trace)], marks=False, steps=True)]
            drawn.append((f"{caption} over training", plot(series, caption, "tasks learned", "%", whole_x=True)))
        return [(caption, svg) for caption, svg in drawn if svg is not None]

    @property
    def pictures(self) -> list[Pictures]:
        """Samples that left and that stayed, by task, from samples.json."""
        told = parse(self._text(SAMPLES) or "")
        tasks = told.get("tasks") if told else None
        found = [_pictures(entry) for entry in tasks[:MOST_CELLS]] if isinstance(tasks, list) else []
        return [p for p in found if p is not None]

    @property
    def settings(self) -> str:
        """config.toml as it is."""
        return self._text(CONFIG) or ""

    @property
    def environment(self) -> list[tuple[str, str]]:
        """Where it ran, and what identifies it."""
        result = self.record.result
        backend = result.get("backend")
        told = {
            **result["environment"],
            "backend": backend.get("name") if isinstance(backend, dict) else None,
            "model SHA-256": result.get("model_sha256"),
            "run directory": str(self.record.path),
        }
        return [(str(key), str(value)) for key, value in told.items() if value is not None]

    @property
    def command(self) -> str:
        """What makes the run again."""
        return f"sparcl run --config {shlex.quote(str(self.record.path / CONFIG))} --out again"

    def _text(self, name: str) -> str | None:
        path = self.record.path / name
        if not os.path.isfile(path):  # a pipe would be waited for
            return None
        try:
            return regular.read(path, MOST_BYTES, ours=True).decode("utf-8", "replace")
        except OSError:
            return None


def _task_lines(rows: Sequence[Sequence[float]], name: str) -> str | None:
    """Accuracy on each of the first tasks, from when it was learned on."""
    series = [
        Series(f"task {t + 1}", [(i + 1, row[t]) for i, row in enumerate(rows) if i >= t and t < len(row)], style=t)
        for t in range(min(MAX_LINES, len(rows)))
    ]
    return plot(series, f"{name} accuracy of each task", "tasks learned", f"{name} %", whole_x=True, percent=True)


def _pictures(entry: object) -> Pictures | None:
    """One task of samples.json; only pictures that are inside the page, and that are small, are shown."""
    if not isinstance(entry, dict) or type(entry.get("task")) is not int:
        return None
    groups = []
    for key in ("removed", "kept"):
        told = entry.get(key)
        if not isinstance(told, dict) or not isinstance(told.get("shown"), list):
            return None
        shown = [s for s in told["shown"] if isinstance(s, dict) and _is_picture(s.get("image"))][:MOST_PICTURES]
        pictures = tuple((str(s.get("label")), str(s["image"])) for s in shown)
        groups.append((key, int(number(told.get("count")) or 0), pictures))
    return Pictures(entry["task"], tuple(groups))


def _is_picture(address: object) -> bool:
    return isinstance(address, str) and len(address) <= MOST_ADDRESS and PICTURE.fullmatch(address) is not None
