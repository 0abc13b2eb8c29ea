"""The report as one HTML page that needs nothing else: table, figures, notes, what was left out."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Sequence
from importlib.resources import files

from sparcl.errors import ConfigError
from sparcl.report import figures
from sparcl.report.records import Problem
from sparcl.report.tables import Group, columns, notes

FIGURES = (
    ("Accuracy over tasks", figures.accuracy_over_tasks),
    ("Accuracy against cost", figures.accuracy_against_flops),
    ("What was computed, over time", figures.computed_over_time),
)


def page(groups: Sequence[Group], problems: Sequence[Problem]) -> str:
    """The page's HTML, with its figures inside.

    Raises:
        ConfigError: jinja2 or matplotlib is missing.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"format html needs {' and '.join(missing)}: pip install 'sparcl-edge[report]'")
    import jinja2

    drawn = []
    for stream in dict.fromkeys(g.stream for g in groups):
        of_stream = [g for g in groups if g.stream == stream]
        drawn += [(f"{title}: {stream}", _image(svg)) for title, draw in FIGURES if (svg := draw(of_stream))]
    shown = columns(groups)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("sparcl.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        columns=shown,
        rows=[[(c.text, c.cell(g)) for c in shown] for g in groups],
        notes=notes(groups),
        figures=drawn,
        runs=[(g.label, r) for g in groups for r in g.records],
        problems=problems,
    )


def _image(svg: str) -> str:
    """An SVG as a data address: as an image its ids cannot collide with another figure's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
