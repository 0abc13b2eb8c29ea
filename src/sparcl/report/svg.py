"""Figures as inline SVG: curves with error bars, and heat maps. Colours are the page's own, so light and dark follow.

Every text is escaped and cut to the room that it has; numbers that are no measurement are left out.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from sparcl.report.events import number

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 38
COLOURS = 6
"""That the page's style has; then the same with a dashed line and another mark."""

CELL, ROW, MOST_CELLS = 44, 20, 40
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve, or a set of marks.

    Attributes:
        points: x and y; `None` is a gap, as is what is no usable number: nothing is drawn across it.
        errors: of each point, half the error bar in x and in y (None: no bar); empty for none at all.
        style: its place among the series, which chooses colour, dash and mark.
        line, marks, steps: whether points are joined, are marked, and are joined by steps.
    """

    label: str
    points: Sequence[tuple[float | None, float | None]]
    errors: Sequence[tuple[float | None, float | None]] = ()
    style: int = 0
    line: bool = True
    marks: bool = True
    steps: bool = False


@dataclass(frozen=True)
class Axis:
    """From data to the page: the range, and the marks on it."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in the figure's units; values outside the range at its border."""
        low, high, value = self._scaled(self.low), self._scaled(self.high), self._scaled(value)
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers of the range, at most `most` + 1."""
        if self.log and self.high / self.low > 5:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            stride = max(1, math.ceil((last - first) / most))
            factors = (1, 2, 5) if last - first <= 2 else (1,)
            found = [f * 10.0**k for k in range(first, last + 1, stride) for f in factors]
            return [v for v in found if self.low <= v <= self.high][: most + 1]
        step = _round_step((self.high - self.low) / most)
        count = math.ceil(self.low / step - 1e-9)
        return [v for i in range(most + 2) if (v := (count + i) * step) <= self.high * (1 + 1e-12) + 1e-12]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(f for f in (1, 2, 5, 10) if f * power >= rough * 0.999)


def axis(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Axis | None:
    """An axis around values; None where there is none to show."""
    shown = [v for v in values if not log or v > 0]
    if not shown:
        return None
    low, high = min(shown), max(shown)
    if log:
        factor = max((high / low) ** room, 1.3)
        return Axis(low / factor, high * factor, start, end, log=True)
    spread = (high - low) * room or max(abs(high) * room, 0.5)
    return Axis(low - spread, high + spread, start, end)


def tick_text(value: float) -> str:
    """A short number: 0.25, 40, 2e+09."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.6g}"


def plot(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    whole_x: bool = False,
    percent: bool = False,
    borders: Sequence[float] = (),
) -> str | None:
    """A figure of curves or marks; None where there is nothing to draw.

    Args:
        title: for those who do not see the figure.
        whole_x: x counts something: marks at whole numbers only.
        percent: the y axis goes from 0 to 100.
        borders: x of thin upright lines.
    """
    clean = [_clean(s, x_log) for s in series]
    points = [p for shown in clean for p in shown.points]
    spans = [y + d for c in clean for (_, y), (_, e) in zip(c.points, c.bars, strict=True) for d in (-e, e)]
    across = axis((x for x, _ in points), LEFT, WIDTH - RIGHT, log=x_log)
    up = axis(spans, HEIGHT - BOTTOM, TOP)
    if across is None or up is None:
        return None
    if percent:
        up = Axis(0.0, 100.0, HEIGHT - BOTTOM, TOP)
    parts = [*_frame(across, up, x_label, y_label, whole_x)]
    parts += [_rule(across.at(x), TOP, across.at(x), HEIGHT - BOTTOM, "border") for x in borders if _inside(across, x)]
    for shown in clean:
        parts += _draw(shown, across, up)
    return _figure(WIDTH, HEIGHT, title, parts, 640)


def _inside(axis: Axis, value: float) -> bool:
    return axis.low <= value <= axis.high


@dataclass(frozen=True)
class _Shown:
    """The usable points of a series, with half their error bars (0: none), and which of them begin a line."""

    series: Series
    points: list[Point]
    bars: list[Point]
    begins: set[int]


def _clean(s: Series, x_log: bool) -> _Shown:
    shown, gap = _Shown(s, [], [], set()), True
    for i, (x, y) in enumerate(s.points):
        a, b = number(x), number(y)
        if a is None or b is None or (x_log and a <= 0):
            gap = True
            continue
        if gap:
            shown.begins.add(len(shown.points))
        dx, dy = s.errors[i] if s.errors else (None, None)
        shown.points.append((a, b))
        shown.bars.append((number(dx) or 0.0, number(dy) or 0.0))
        gap = False
    return shown


def _frame(across: Axis, up: Axis, x_label: str, y_label: str, whole_x: bool) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in up.ticks():
        y = up.at(value)
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 5, y + 4, tick_text(value), "end", LEFT - 6))
    ticks = across.ticks()
    if whole_x:
        stride = max(1, math.ceil((across.high - across.low) / 8))
        ticks = [float(v) for v in range(math.ceil(across.low), math.floor(across.high) + 1, stride)]
    for value in ticks:
        parts.append(_rule(across.at(value), bottom, across.at(value), bottom + 4, "axis"))
        where = min(across.at(value), WIDTH - RIGHT - 6)
        parts.append(text(where, bottom + 16, tick_text(value), "middle", (WIDTH - LEFT) / 8))
    parts.append(_rule(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(text(2, 13, y_label, "start", WIDTH - 4))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 5, x_label, "end", WIDTH - 20))
    return parts


def _draw(shown: _Shown, across: Axis, up: Axis) -> list[str]:
    s, begins = shown.series, shown.begins
    places = [(across.at(x), up.at(y)) for x, y in shown.points]
    alone = {i for i in begins if i + 1 in begins or i + 1 == len(places)}
    parts = []
    if s.line and len(alone) < len(places):
        path = ""
        for i, (x, y) in enumerate(places):
            if i not in alone:
                path += f"M{x:.1f} {y:.1f}" if i in begins else f"H{x:.1f}V{y:.1f}" if s.steps else f"L{x:.1f} {y:.1f}"
        parts.append(f'<path class="line" d="{path}"/>')
    for i, ((x, y), (dx, dy), (px, py)) in enumerate(zip(shown.points, shown.bars, places, strict=True)):
        if dy:
            parts.append(_rule(px, up.at(y - dy), px, up.at(y + dy), "bar"))
            parts += [_rule(px - 3, up.at(end), px + 3, up.at(end), "bar") for end in (y - dy, y + dy)]
        if dx:
            parts.append(_rule(across.at(x - dx), py, across.at(x + dx), py, "bar"))
        if s.marks or i in alone:  # a line of one point is none
            parts.append(mark(px, py, s.style))
    body = f"<title>{escape(s.label)}</title>" + "".join(parts)
    return [f'<g class="{style_class(s.style)}">{body}</g>']


def style_class(style: int) -> str:
    """The page's classes for the colour and the dash of a series."""
    return f"s{style % COLOURS} d{style // COLOURS % 2}"


def mark(x: float, y: float, style: int) -> str:
    """A filled mark; beyond the colours another shape."""
    if style // COLOURS % 2:
        return f'<rect class="mark" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def swatch(style: int) -> str:
    """What stands before a series' name in a legend."""
    inside = f'<path class="line" d="M1 6H27"/>{mark(14, 6, style)}'
    return f'<svg class="swatch {style_class(style)}" viewBox="0 0 28 12" aria-hidden="true">{inside}</svg>'


def heat_map(
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    *,
    most: float = 100.0,
) -> str | None:
    """Values as shades, with the numbers where they fit; None where there is no value.

    Args:
        rows: the values; missing ones are None. At most `MOST_CELLS` rows and columns are drawn.
        most: what has the darkest shade.
    """
    rows, columns = rows[:MOST_CELLS], min(MOST_CELLS, max((len(row) for row in rows), default=0))
    if not any(number(v) is not None for row in rows for v in row[:columns]):
        return None
    left = min(130.0, 14 + max(_width(name) for name in row_names[: len(rows)] or [""]))
    cell = min(float(CELL), (WIDTH - left - 4) / columns)
    wide, high = left + columns * cell + 4, 20 + len(rows) * ROW + 4
    parts = []
    stride = math.ceil(max(24, max(_width(n) for n in column_names[:columns] or [""])) / cell)
    for j in range(0, columns, min(stride, columns)):
        room = cell * min(stride, columns - j)
        parts.append(text(left + j * cell + cell / 2, 13, column_names[j], "middle", max(room, cell)))
    known = [v for row in rows for value in row[:columns] if (v := number(value)) is not None]
    told = max(_width(_cell_text(v)) for v in known) <= cell - 2  # in all cells or in none
    for i, row in enumerate(rows):
        y = 20.0 + i * ROW
        parts.append(text(left - 6, y + 14, row_names[i], "end", left - 8))
        for j, value in enumerate(row[:columns]):
            name = f"{row_names[i]}, {column_names[j]}"
            parts.append(_cell(left + j * cell, y, cell, number(value), most, name, told))
    return _figure(max(wide, 200), high, title, parts, max(wide, 200) * 1.4)


def _cell_text(value: float) -> str:
    return f"{value:.0f}" if abs(value) < 1e4 else tick_text(value)


def _cell(x: float, y: float, width: float, value: float | None, most: float, name: str, told: bool) -> str:
    if value is None:
        return ""
    share = min(1.0, max(0.0, value / most))
    box = f'<rect class="heat" x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{width - 1:.1f}" height="{ROW - 1}"'
    box += (
        f' fill-opacity="{0.06 + 0.94 * share:.2f}"><title>{escape(name)}: {tick_text(round(value, 2))}</title></rect>'
    )
    if not told:
        return box
    ink = "ink" if share <= 0.55 else "ink middle" if share <= 0.8 else "ink deep"
    place = f'x="{x + width / 2:.1f}" y="{y + 14:.1f}" text-anchor="middle"'
    return f'{box}<text class="{ink}" {place}>{_cell_text(value)}</text>'


def text(x: float, y: float, words: str, anchor: str, room: float) -> str:
    """A text that is cut to `room` units; whole for those who point at it."""
    shown = cut(words, room)
    whole = "" if shown == words else f"<title>{escape(words)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}{whole}</text>'


def cut(words: str, room: float) -> str:
    """As much of a text as fits into `room` units, with an ellipsis where some is left out."""
    words = " ".join(words.split())
    if _width(words) <= room:
        return words
    kept = ""
    for letter in words:
        if _width(kept + letter) + 8 > room:
            break
        kept += letter
    return kept + "…"


def _width(words: str) -> float:
    """An estimate, on the safe side, of a text's width in a figure's letters."""
    return sum(map(_letter, words))


def _letter(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF" or letter in "MWm@%":
        return 12.0
    return 8.5 if letter.isupper() or letter == "w" else 6.4


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _figure(width: float, height: float, title: str, parts: Sequence[str], most: float) -> str:
    head = f'<svg class="figure" role="img" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{most:.0f}px">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
