"""The report as one HTML page that needs nothing else: a run in full, or several beside each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.resources import files

from sparcl.errors import ConfigError
from sparcl.report.detail import Detail
from sparcl.report.figures import MAX_LINES, comparison, names
from sparcl.report.records import Problem
from sparcl.report.svg import swatch
from sparcl.report.tables import MISSING, Column, Group, columns, notes

COST = ("FLOPs paper", "FLOPs executed", "of dense", "train s", "state MiB", "peak MiB", "published FLOPs")
"""Headings of the table of costs; the other figures make the table of accuracies."""

NAMING = ("sparsity", "buffer", "n")
"""Columns that a row's name holds."""

MOST_CLASSES = 40
"""Classes whose accuracy is shown."""

MOST_DETAILS = 12
"""Runs that are shown in full, the first of each row."""


def page(groups: Sequence[Group], problems: Sequence[Problem]) -> str:
    """The page's HTML, with its figures inside.

    Raises:
        ConfigError: jinja2 is missing.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ConfigError("format html needs jinja2: pip install 'sparcl-edge[report]'")
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # ours, its texts escaped
    template = environment.from_string(files("sparcl.report").joinpath("page.html").read_text(encoding="utf-8"))
    called = {id(g): name for stream in _streams(groups) for g, name in zip(stream, names(stream), strict=True)}
    runs = [(g, record) for g in groups for record in g.records]
    alone = len(runs) == 1
    return template.render(
        alone=alone,
        title=f"{runs[0][0].stream}: {called[id(runs[0][0])]}" if alone else f"{len(runs)} runs compared",
        streams=[] if alone else [_stream(stream, called) for stream in _streams(groups)],
        notes=notes(groups),
        details=[
            Detail(f"{g.stream}: {called[id(g)]}, seed {g.records[0].seed}", g.records[0])
            for g in groups[:MOST_DETAILS]
        ],
        runs=[(called[id(g)], record) for g, record in runs],
        problems=problems,
        swatch=swatch,
        most=MAX_LINES,
        most_classes=MOST_CLASSES,
    )


def _streams(groups: Sequence[Group]) -> list[list[Group]]:
    return [[g for g in groups if g.stream == stream] for stream in dict.fromkeys(g.stream for g in groups)]


def _stream(groups: Sequence[Group], called: dict[int, str]) -> dict[str, object]:
    """What the page shows of the groups of one stream."""
    shown = [c for c in columns(groups) if not c.text and c.heading not in NAMING]
    return {
        "name": groups[0].stream,
        "rows": [f"{called[id(g)]}, n={len(g.records)}" for g in groups],
        "tables": [
            ("Accuracy", *_table([c for c in shown if c.heading not in COST], groups)),
            ("Cost", *_table([c for c in shown if c.heading in COST], groups)),
        ],
        "figures": comparison(groups),
    }


def _table(shown: Sequence[Column], groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    return [c.heading for c in shown], [[c.cell(g) or MISSING for c in shown] for g in groups]
