"""The first section of docs/results.md: accuracy at equal time, from the records of equal-time.toml and its costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparcl.methods.settings import published
from sparcl.report.records import Record
from sparcl.report.svg import HEIGHT, LEFT, WIDTH, Series, mark, plot, style_class
from sparcl.report.tables import Stat, stat

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import (
    A_PASS,
    AVERAGED,
    AVERAGED_PARTS,
    BASE,
    BATCH,
    BUDGETS,
    CANDIDATE,
    CONFIRMING,
    COSTS,
    ER_RATES,
    HALVES,
    MAIN,
    MORE,
    MORE_RIVALS,
    PARTS,
    RATES,
    ROW,
    SEEDS,
    SINGLE,
    SMALL,
    SMALLER,
    cost_of,
    steps,
)
from student import shown, welch

NAMES = {
    "sparcl": "SparCL",
    "static": "static",
    "set": "SET",
    "snip": "SNIP",
    "rigl": "RigL",
    "derpp": "DER++",
    "er": "ER",
    "er-ace": "ER-ACE",
}
RIVALS = ("static", "set", "snip", "rigl")
LEVEL = 0.05
AIMS = {1: 5.0, 2: 10.0, 4: 10.0, 8: 10.0}
"""Points of Class-IL above the dense host, DER++ or ER, that it is to have under SparCL .90 at each budget."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One row at one budget."""

    steps: int
    class_il: Stat
    task_il: Stat

    def __str__(self) -> str:
        return f"{_figure(self.class_il)} / {_figure(self.task_il)} ({self.class_il.n})"


class Table:
    """What has been run of the sweep with some seeds: rows × budgets, at one width."""

    def __init__(self, records: Sequence[Record], width: int, seeds: range = SEEDS) -> None:
        self.costs: list[dict[str, Any]] = json.loads((COSTS / f"costs-{width}.json").read_text())
        self.width = width
        dense = cost_of(MAIN[0], self.costs)
        assert dense is not None
        self.seconds = A_PASS * dense["step_ms"] / 1000
        """Of training a task, at a budget of 1."""
        mine = [r for r in records if r.config.get("width") == width and r.config["seed"] in seeds]
        rows = [*MAIN, *AVERAGED, *RATES, *SINGLE, *SMALL, *SMALLER, *MORE_RIVALS, *MORE, *ER_RATES, *PARTS]
        rows += [*HALVES, *AVERAGED_PARTS]
        self.cells = {i: cells for i, row in enumerate(rows) if (cells := self._cells(row, mine))}
        self.rows = rows

    def _cells(self, row: Row, records: Sequence[Record]) -> dict[int, Cell]:
        found = {}
        for budget in BUDGETS:
            count = steps(dict(row), budget, self.costs)
            runs = [r for r in records if r.config.get("steps") == count and _is(r, row)]
            if count is not None and runs:
                accuracies = (stat(r.figure("", name) for r in runs) for name in ("class_il", "task_il"))
                found[budget] = Cell(count, *accuracies)
        return found

    def of(self, **wanted: Any) -> dict[int, Cell]:
        """The cells of a row by budget; {} where nothing of it was run."""
        for i, row in enumerate(self.rows):
            if dict(row) == wanted:
                return self.cells.get(i, {})
        return {}


def section(records: Sequence[Record]) -> list[str]:
    """Lines of the page; the figure is written beside by `figure`."""
    table = Table(records, 32)
    dense, ours = table.of(**MAIN[0]), table.of(**MAIN[1])
    figures = [*_answers(table, dense, ours), *_goals(table)]
    return [
        "## At equal time",
        "",
        *(f"- {line}" for line in figures),
        "",
        "![Class-IL against seconds of training a task, with one standard deviation](pictures/equal-time.svg)",
        "",
        f"Split CIFAR-10, 1,000 training and 200 test images a class, ResNet-18 of width {table.width}, buffer 200, one"
        f" thread. A budget of 1 is what one epoch of dense DER++ takes: {A_PASS} steps, {table.seconds:.0f} seconds a"
        " task on the machine that the costs were measured on. Every row has as many steps as fit into that by its own"
        " cost of a step, mask updates charged (`python experiments/equal_time.py costs`, records in"
        f" `experiments/results/equal-time/costs-{table.width}.json`; RigL's charge is its dense gradient). Not"
        " charged: DGM's choices and the steps that are read for ranking, which were not seen when the costs were"
        " measured: 3 % of SparCL's time at budgets 1 and 2, 2 % at 4 (`sparcl bench --job --stream seq-cifar10 --width"
        " 32 --threads 1 --samples 2000`, which times both now: 0.19 and 0.28 of a step). The images"
        " are CIFAR-10 compressed once more as JPEG: absolute accuracies lie under those on the original files. The"
        " runs (`sparcl sweep experiments/equal-time.toml --data CIFAR10`) have steps, not seconds, so that nothing"
        " depends on what else their machine did.",
        "",
        "Class-IL / Task-IL in percent, mean ± standard deviation (number of seeds):",
        "",
        *_lines(table),
        *_wider(Table(records, 64)),
        *_halved(table),
        *_averaged(table),
        *_parts(table),
        *_confirmation(Table(records, 32, CONFIRMING)),
    ]


def _parts(table: Table) -> list[str]:
    """SparCL .90 as it is against itself with one part changed, where two runs or more stand on both sides."""
    lines = []
    for row in (*PARTS, *HALVES, *AVERAGED_PARTS):
        ours = table.of(**AVERAGED[1] if "average" in row else MAIN[1])
        for budget, cell in table.of(**row).items():
            if budget in ours and _both(cell, ours[budget]):
                changed = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in row.items() if k not in AVERAGED[1])
                changed += ", both averaged" if "average" in row else ""
                lines.append(f"- Budget {budget}, {changed}: {_apart(ours[budget], cell)}.")
    return ["", "SparCL .90 as it is, above itself with one part changed (Class-IL):", "", *lines] if lines else []


def _wider(table: Table) -> list[str]:
    """The table of the network at full width, as far as it goes."""
    if not table.cells:
        return []
    return ["", f"Width {table.width}, three seeds, costs in `costs-{table.width}.json`:", "", *_lines(table)]


def _halved(table: Table) -> list[str]:
    """Smaller batches in the same time: each row above itself, what is sparse above dense, SparCL above static."""
    at_32, at_16 = ("batch 32", MAIN[0]), ("batch 16", SMALL[0])
    lines = _above(table, SMALLER[0], at_32, at_16) + _above(table, SMALL[0], at_32)
    for whole, row in zip(MAIN[1:], SMALL[1:], strict=False):
        rivals = [("dense, batch 16", SMALL[0]), ("static, batch 16", SMALL[2])]
        lines += _above(table, row, ("batch 32", whole), *(rival for rival in rivals if rival[1] is not row))
    head = "Batches of 16 and 8 in place of 32, replay's too, so about twice and four times the steps (Class-IL):"
    return ["", head, "", *lines] if lines else []


def _above(table: Table, row: Row, *beside: tuple[str, Row]) -> list[str]:
    """A row against others, by what they are called, at each budget where two runs or more stand on both sides."""
    lines = []
    for budget, cell in table.of(**row).items():
        others = [(name, table.of(**other).get(budget)) for name, other in beside]
        told = [f"above {name} {_apart(cell, other)}" for name, other in others if other and _both(cell, other)]
        lines += [f"- Budget {budget}, {_name(row)}: {'; '.join(told)}."] if told else []
    return lines


def _both(a: Cell, b: Cell) -> bool:
    """Whether two runs or more stand on both sides."""
    return min(a.class_il.n, b.class_il.n) > 1


def _averaged(table: Table) -> list[str]:
    """What an average that answers adds to each row, where two runs or more stand on both sides."""
    lines = []
    for plain, averaged in zip(MAIN, AVERAGED, strict=True):
        without = table.of(**plain)
        for budget, cell in table.of(**averaged).items():
            if budget in without and _both(cell, without[budget]):
                lines.append(f"- Budget {budget}, {_name(plain)}: {_apart(cell, without[budget])}.")
    head = "Answered by an average of the weights over the last tenth of a task, above the same row without (Class-IL):"
    return ["", head, "", *lines] if lines else []


def _apart(ours: Cell, other: Cell) -> str:
    a, b = ours.class_il, other.class_il
    assert a.mean is not None
    assert b.mean is not None
    p = _p(a, b, a.mean - b.mean)
    return f"{a.mean - b.mean:+.1f} points, {shown(p)} ({a.n} and {b.n} runs)"


def _confirmation(table: Table) -> list[str]:
    """The best of the parts against the rivals, all averaged, on seeds that did not choose it."""
    candidate = table.of(**CANDIDATE)
    rivals = [(NAMES[row["sparsifier"]], table.of(**row)) for row in AVERAGED[2:]]
    lines = []
    for budget, cell in candidate.items():
        beside = [(name, cells[budget]) for name, cells in rivals if budget in cells]
        lines.append(
            f"- Budget {budget}: {_name(CANDIDATE)} {_figure(cell.class_il)} % Class-IL. "
            + " ".join(f"Against {n}, {_figure(c.class_il)} %: {_verdict(cell, c, 0.0)}." for n, c in beside)
        )
    first, last = CONFIRMING[0], CONFIRMING[-1]
    head = f"The best of the parts, on seeds that did not choose it ({first} to {last}), all rows averaged:"
    return ["", head, "", *lines] if lines else []


def _answers(table: Table, dense: Mapping[int, Cell], ours: Mapping[int, Cell]) -> list[str]:
    """What a person looks for."""
    lines = []
    for budget in BUDGETS:
        if budget in dense and budget in ours:
            a, b = dense[budget], ours[budget]
            rivals = [
                f"{NAMES[name]} {_figure(cells[budget].class_il)}" for name, cells in _rivals(table) if budget in cells
            ]
            beside = f" At the same sparsity: {', '.join(rivals)}." if rivals else ""
            lines.append(
                f"**With {budget * table.seconds:.0f} seconds a task**: dense DER++ {_figure(a.class_il)} % Class-IL,"
                f" SparCL-DER++ .90 {_figure(b.class_il)} % ({_difference(b, a)}), by {b.steps} steps for {a.steps}."
                f"{beside}"
            )
    return lines


def _goals(table: Table) -> list[str]:
    """The aims of the comparison, judged where two runs or more stand on both sides."""
    lines = []
    for host in ("derpp", "er"):
        dense = table.of(method=host, sparsifier="dense")
        ours = table.of(method=host, sparsifier="sparcl", sparsity=0.9)
        for budget, aim in AIMS.items():
            where = f"Aim at budget {budget}{'' if host == 'derpp' else f', {NAMES[host]}'}"
            if budget in dense and budget in ours:
                lines.append(f"{where}, {aim:g} points above dense: {_verdict(ours[budget], dense[budget], aim)}.")
            for name, cells in _rivals(table, host):
                if budget in cells and budget in ours:
                    lines.append(f"{where}, not below {NAMES[name]}: {_verdict(ours[budget], cells[budget], 0.0)}.")
    return lines


def _rivals(table: Table, host: str = "derpp") -> list[tuple[str, dict[int, Cell]]]:
    return [(name, table.of(method=host, sparsifier=name, sparsity=0.9)) for name in RIVALS]


def _p(a: Stat, b: Stat, difference: float) -> float:
    """Welch's p of a difference between two sets of two runs or more."""
    assert a.std is not None
    assert b.std is not None
    return welch(difference, (a.std**2 / a.n, b.std**2 / b.n), (a.n, b.n))


def _verdict(ours: Cell, other: Cell, aim: float) -> str:
    a, b = ours.class_il, other.class_il
    if a.mean is None or b.mean is None or a.std is None or b.std is None:
        return "one run on a side says nothing"
    difference = a.mean - b.mean - aim
    p = _p(a, b, difference)
    answer = "reached" if difference >= 0 else "missed"
    noise = "" if p < LEVEL else ", within noise"
    against = f" against {aim:+g}" if aim else ""
    return f"{answer}{noise} ({difference + aim:+.1f} points, {shown(p)}{against}; {a.n} and {b.n} runs)"


def _difference(ours: Cell, other: Cell) -> str:
    assert ours.class_il.mean is not None
    assert other.class_il.mean is not None
    return f"{ours.class_il.mean - other.class_il.mean:+.1f} points; {ours.class_il.n} and {other.class_il.n} runs"


def _lines(table: Table) -> list[str]:
    head = ["row", *(f"budget {b}, {b * table.seconds:.0f} s" for b in BUDGETS)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(BUDGETS)}"]
    for i, cells in table.cells.items():
        shown = [str(cells[b]) if b in cells else "–" for b in BUDGETS]
        lines.append(f"| {_name(table.rows[i])} | {' | '.join(shown)} |")
    return lines


def _name(row: Row) -> str:
    host = NAMES[row["method"]]
    words = [
        f"{host} dense" if row["sparsifier"] == "dense" else f"{host} {NAMES[row['sparsifier']]} {row['sparsity']:g}"
    ]
    words += ["blocks of 4"] if row.get("pattern") == "block" else []
    words += ["single head"] if row.get("single_head") else []
    words += [f"batch {row['batch_size']}"] if "batch_size" in row else []
    more = {k: v for k, v in row.items() if k not in ROW}
    return ", ".join([*words, *(f"{k.replace('_', ' ')} {v}" for k, v in more.items())])


def _is(record: Record, row: Row) -> bool:
    """Whether a record is of a row: what the row leaves out is as usual."""
    usual = {"pattern": "unstructured", "single_head": False, "sample_removal": 0.0, "batch_size": BATCH}
    usual |= {"activations": None, "average": None}
    usual |= {"gradient_sparsity": 0.2, "importance": "cwi", "first_mask": "random", "ranking": "step"}
    usual |= {"lr": published(BASE["stream"], row["method"], 200)["lr"]}
    of_sparcl = ("sample_removal", "gradient_sparsity", "importance", "ranking")
    for key, value in {**usual, **row}.items():
        if row["sparsifier"] != "sparcl" and key in of_sparcl:
            continue
        if record.config.get(key, usual.get(key)) != value:
            return False
    return True


def _figure(found: Stat) -> str:
    if found.mean is None:
        return "–"
    return f"{found.mean:.1f}" + ("" if found.std is None else f" ± {found.std:.1f}")


def figure(records: Sequence[Record]) -> str | None:
    """Class-IL against seconds a task, of DER++ dense, SparCL and the rivals at .90; an SVG of its own."""
    table = Table(records, 32)
    shown = [("dense", table.of(**MAIN[0])), ("SparCL", table.of(**MAIN[1]))]
    shown += [(NAMES[name], cells) for name, cells in _rivals(table)]
    series = []
    for style, (name, cells) in enumerate((n, c) for n, c in shown if c):
        aside = 1 + 0.015 * (style - 2)  # bars of rows side by side are told apart
        points = [(b * table.seconds * aside, cell.class_il.mean) for b, cell in cells.items()]
        series.append(Series(name, points, [(None, cell.class_il.std) for cell in cells.values()], style))
    label = "Class-IL, %"
    drawn = plot(series, "Class-IL at equal time", "seconds of training a task", label, x_log=True)
    return None if drawn is None else _alone(drawn, [s.label for s in series])


STYLE = """
text { font: 9px sans-serif; fill: #808080 }
.axis, .tick, .grid, .border { stroke: #808080; stroke-width: 0.5 }
.line { fill: none; stroke: currentColor; stroke-width: 1.5 }
.bar { stroke: currentColor; stroke-width: 1 }
.mark { fill: currentColor }
.s0 { color: #0072b2 } .s1 { color: #d55e00 } .s2 { color: #00805e }
.s3 { color: #b0508a } .s4 { color: #946200 } .s5 { color: #3a87b7 }
"""
"""Colours that can be read on light and dark ground."""


def _alone(drawn: str, labels: Sequence[str]) -> str:
    """A figure of the run page as a file of its own: with its style, and a legend below."""
    inside = drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")]
    legend = []
    for i, label in enumerate(labels):
        x, y = LEFT + 58 * i, HEIGHT + 6
        legend.append(f'<g class="{style_class(i)}">{mark(x, y, i)}</g><text x="{x + 7}" y="{y + 3}">{label}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {HEIGHT + 16}">'
    return f"{head}<style>{STYLE}</style>{inside}{''.join(legend)}</svg>\n"
