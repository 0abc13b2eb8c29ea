"""Records grouped over seeds, as tables: mean ± sample standard deviation, for a terminal, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from sparcl import published
from sparcl.report import neutral
from sparcl.report.records import INCIDENTAL, Record

FORMATS = ("table", "markdown", "csv", "html")
MISSING = "–"

OF_METHOD = (
    "lr",
    "weight_decay",
    "method_options",
    "preset",
    "scenario",
    "single_head",
    "drop_last",
    "first_mask",
    "gradient_sparsity",
    "sample_removal",
    "ddr_score",
    "importance",
    "ranking",
    "block_size",
    "distribution",
    "prunable",
)
"""Settings that follow from the method or sparsifier: a difference in them tells runs of the same one apart."""

METHOD_ORDER = (
    "finetune", "ewc", "lwf", "agem", "packnet", "lps", "icarl", "fdr", "er", "er-ace", "der", "derpp", "joint",
)  # fmt: skip
"""As papers order them: no memory first, the upper bound last."""


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over `n` runs; `std` is None for one run, `mean` where any was unmeasured."""

    mean: float | None
    std: float | None
    n: int

    def text(self, form: Callable[[float], str], *, spread: bool = True) -> str:
        if self.mean is None:
            return MISSING
        return form(self.mean) + (f" ± {form(self.std)}" if spread and self.std is not None else "")


def stat(values: Iterable[float | None]) -> Stat:
    """Mean and sample standard deviation; a value that was not measured makes both unknown, never a guess."""
    all_values = list(values)
    known = [v for v in all_values if v is not None]
    if not known or len(known) < len(all_values):
        return Stat(None, None, len(all_values))
    return Stat(*mean_and_spread(known), len(known))


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (None for one value); what no float can hold is None."""
    try:
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else None
    except OverflowError:
        return None, None
    return mean, spread if spread is None or math.isfinite(spread) else None


Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    stream: str
    method: str
    sparsifier: str
    sparsity: float
    pattern: str
    buffer: int | None
    settings: Settings
    """What else tells this group from others of the report."""
    usual: frozenset[str]
    """Those of the settings that hold the value of most groups alike in the rest: said once, below the table."""
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        """A short name: method, sparsifier, sparsity, pattern and what else differs."""
        parts = [self.method, self.sparsifier]
        if self.sparsifier != "dense":
            parts.append(_sparsity(self.sparsity))
        if self.pattern != "unstructured":
            parts.append(self.pattern)
        return " ".join(parts) + (f" ({self.settings_text})" if self.settings_text else "")

    @property
    def settings_text(self) -> str:
        """The settings that are not the usual ones."""
        return _named((key, value) for key, value in self.settings if key not in self.usual)

    def stat(self, section: str, name: str) -> Stat:
        return stat(r.figure(section, name) for r in self.records)

    @property
    def share_of_dense(self) -> Stat:
        """Executed FLOPs over those that the dense host would execute."""
        return stat(_ratio(r.figure("flops", "executed"), r.figure("flops", "dense")) for r in self.records)

    @property
    def state(self) -> Stat:
        """Bytes that training holds between steps: weights, their positions, gradients, optimizer, buffer."""
        return stat(_total(r.result["memory"], STATE) for r in self.records)

    @property
    def published(self) -> published.Published | None:
        return published.accuracy(self.stream, self.method, self.sparsifier, self.buffer)

    @property
    def published_flops(self) -> float | None:
        settings = self.records[0].config  # alike in all of them
        return published.paper_flops(self.stream, self.method, self.sparsifier, self.sparsity, settings)


STATE = ("parameter_bytes", "index_bytes", "gradient_bytes", "optimizer_bytes", "buffer_bytes")


def _total(holder: dict[str, Any], names: Sequence[str]) -> float | None:
    """The sum of several figures, or None where one was not measured."""
    values = [holder.get(name) for name in names]
    known = [float(v) for v in values if isinstance(v, int | float)]
    total = sum(known)
    return total if len(known) == len(values) and math.isfinite(total) else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b or not math.isfinite(a / b) else a / b


Base = tuple[str, str, str, float, str, int | None]
"""Stream, method, sparsifier, sparsity, pattern, buffer size."""


def _base(record: Record) -> Base:
    config, result = record.config, record.result
    # The sparsity asked for: that reached differs from it by a rounding, and may differ between patterns.
    asked = config.get("sparsity")
    sparsity = 0.0 if result["sparsifier"] == "dense" else asked if asked is not None else result["sparsity"]["weights"]
    names = (result["benchmark"], result["method"], result["sparsifier"])
    pattern = str(config.get("pattern", "unstructured"))
    return (*names, float(sparsity or 0.0), pattern, config.get("buffer_size"))


def group(records: Sequence[Record]) -> list[Group]:
    """Groups by stream, method, sparsifier, sparsity, pattern, buffer, and by any other setting that differs."""
    by_stream: dict[str, list[Record]] = {}
    by_base: dict[Base, list[Record]] = {}
    for record in records:
        by_stream.setdefault(record.result["benchmark"], []).append(record)
        by_base.setdefault(_base(record), []).append(record)
    keys = {key for record in records for key in record.config} - {"seed", *INCIDENTAL, *_BASE_KEYS}
    groups: list[Group] = []
    for base, members in by_base.items():
        telling = [k for k in keys if _varies(members if k in OF_METHOD else by_stream[base[0]], k)]
        split = list(_alike(members, sorted(telling)))
        rows = [settings for settings, _ in split]
        for settings, alike in split:
            usual = frozenset(k for k, value in settings if sum((k, value) in row for row in rows) * 2 > len(rows) > 2)
            groups.append(Group(*base, settings, usual, tuple(sorted(alike, key=lambda r: r.seed))))
    return sorted(groups, key=_order)


def _alike(records: Sequence[Record], telling: Sequence[str]) -> Iterator[tuple[Settings, list[Record]]]:
    """Records with the same values of the settings `telling`, those values first; apart where the data is another."""
    split: dict[str, list[Record]] = {}
    for record in records:
        split.setdefault(repr([record.config.get(k) for k in telling]), []).append(record)
    for alike in split.values():
        settings = tuple((k, alike[0].config.get(k)) for k in telling)
        by_data: dict[str | None, list[Record]] = {}
        for record in alike:
            by_data.setdefault(record.data, []).append(record)
        if len(by_data.keys() - {None}) < 2:
            yield settings, alike
            continue
        for data, of_data in by_data.items():
            yield (*settings, ("data", None if data is None else data[:8])), of_data


_BASE_KEYS = ("stream", "method", "sparsifier", "sparsity", "pattern", "buffer_size")


def _varies(records: Sequence[Record], key: str) -> bool:
    return len({repr(r.config.get(key)) for r in records}) > 1


def _order(g: Group) -> tuple[Any, ...]:
    method = METHOD_ORDER.index(g.method) if g.method in METHOD_ORDER else len(METHOD_ORDER)
    sparse = (g.sparsifier != "dense", g.sparsifier != "sparcl", g.sparsifier)
    return (g.stream, g.buffer or 0, method, g.method, sparse, g.sparsity, g.pattern != "unstructured", g.settings_text)


@dataclass(frozen=True)
class Column:
    """One column of the tables that people read."""

    heading: str
    cell: Callable[[Group], str]
    text: bool = False
    """Whether it names the row (aligned left) or holds a figure."""


def _rounded(value: float, digits: int) -> str:
    """With so many decimals; what is too large to be a measurement does not take hundreds of digits."""
    return f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.3g}"


def _sparsity(value: float) -> str:
    """With two decimals, or with up to four where these tell it from others."""
    whole, _, decimals = f"{value:.4f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def _percent(value: float) -> str:
    return _rounded(value, 2)


def _mib(value: float) -> str:
    return _rounded(value / 2**20, 0)


def _seconds(value: float) -> str:
    return _rounded(value, 1 if value < 1000 else 0)


def _flops(value: float) -> str:
    return f"{value:.3g}"


def _named(settings: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={_setting(value)}" for key, value in settings)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={_setting(v)}" for k, v in value.items()) + "}"
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _published_accuracy(g: Group, name: str) -> str:
    row = g.published
    value = getattr(row, name) if row is not None else None
    return MISSING if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"


COLUMNS = (
    Column("stream", lambda g: g.stream, text=True),
    Column("method", lambda g: g.method, text=True),
    Column("sparsifier", lambda g: g.sparsifier, text=True),
    Column("sparsity", lambda g: _sparsity(g.sparsity)),
    Column("pattern", lambda g: g.pattern, text=True),
    Column("buffer", lambda g: MISSING if g.buffer is None else str(g.buffer)),
    Column("other settings", lambda g: g.settings_text or MISSING, text=True),
    Column("n", lambda g: str(len(g.records))),
    Column("Class-IL %", lambda g: g.stat("", "class_il").text(_percent)),
    Column("Task-IL %", lambda g: g.stat("", "task_il").text(_percent)),
    Column("forgetting", lambda g: g.stat("", "forgetting").text(_percent)),
    Column("FLOPs paper", lambda g: g.stat("flops", "paper").text(_flops, spread=False)),
    Column("FLOPs executed", lambda g: g.stat("flops", "executed").text(_flops, spread=False)),
    Column("of dense", lambda g: g.share_of_dense.text(lambda v: f"{_rounded(100 * v, 1)}%", spread=False)),
    Column("train s", lambda g: g.stat("seconds", "train").text(_seconds)),
    Column("state MiB", lambda g: g.state.text(lambda v: _rounded(v / 2**20, 1), spread=False)),
    Column("peak MiB", lambda g: g.stat("memory", "peak_rss_bytes").text(_mib, spread=False)),
    Column("published Class-IL %", lambda g: _published_accuracy(g, "class_il")),
    Column("published Task-IL %", lambda g: _published_accuracy(g, "task_il")),
    Column("published FLOPs", lambda g: MISSING if g.published_flops is None else _flops(g.published_flops)),
)

CAPTION = (
    "Mean ± sample standard deviation over n seeds. Class-IL, Task-IL: mean accuracy over all tasks after the last;"
    " forgetting: percentage points, in Class-IL unless a run is of Task-IL."
    " FLOPs paper: replay's backward uncounted, as published; executed: every multiply-add that really ran, and its"
    " share of what the dense host would execute."
    " State: weights, indices, gradients, optimizer and buffer in compact form; peak: resident memory of the process."
)
PUBLISHED_NOTE = (
    "Published: as printed in the literature (accuracies: Buzzega et al. 2020, ten seeds; FLOPs: Wang et al. 2022),"
    " under the full protocol: 50 epochs a task on seq-cifar10, 100 on seq-tinyimg, ResNet-18 of width 64, all images."
)


def columns(groups: Sequence[Group]) -> list[Column]:
    """The columns that say something: those empty in every row are left out."""
    return [c for c in COLUMNS if any(c.cell(g) != MISSING for g in groups)]


def notes(groups: Sequence[Group]) -> list[str]:
    """What stands below a table: how to read it, and the hardware that seconds and memory were measured on."""
    shown = {c.heading for c in columns(groups)}
    lines = [CAPTION]
    usual = {f"{key}={_setting(value)}": 0 for g in groups for key, value in g.settings if key in g.usual}
    if usual:
        lines.append("Where a row names no other among its like: " + ", ".join(usual) + ".")
    if any(heading.startswith("published") for heading in shown):
        lines.append(PUBLISHED_NOTE)
    lines.append("Measured on: " + "; ".join(hardware(groups)) + ".")
    return lines


def hardware(groups: Sequence[Group]) -> list[str]:
    """The machines of the records, one line each."""
    machines: dict[str, int] = {}
    for g in groups:
        for record in g.records:
            e = record.result["environment"]
            name = f"{e['cpu']}, {e['threads']} thread(s), device {e['device']}"
            machines[name] = machines.get(name, 0) + 1
    return [f"{name} ({count} run(s))" for name, count in sorted(machines.items(), key=lambda m: -m[1])]


def as_table(groups: Sequence[Group]) -> Table:
    """For a terminal; what is the same in every row stands in the title instead."""
    shown = columns(groups)
    same = [c for c in shown if c.text or c.heading == "buffer"]
    same = [c for c in same if len(groups) > 1 and len({c.cell(g) for g in groups}) == 1]
    title = ", ".join(f"{c.heading} {c.cell(groups[0])}" for c in same)
    table = Table(title=Text(neutral.line(title)) if title else None)
    kept = [c for c in shown if c not in same]
    for column in kept:
        table.add_column(column.heading, justify="left" if column.text else "right")
    for g in groups:
        table.add_row(*(Text(neutral.line(c.cell(g))) for c in kept))
    return table


def as_markdown(groups: Sequence[Group]) -> str:
    """A Markdown table with its notes."""
    shown = columns(groups)
    lines = [
        "| " + " | ".join(c.heading for c in shown) + " |",
        "|" + "|".join("---" if c.text else "---:" for c in shown) + "|",
        *("| " + " | ".join(neutral.markdown(c.cell(g)) for c in shown) + " |" for g in groups),
    ]
    return "\n".join([*lines, "", *(f"{neutral.markdown(note)}\n" for note in notes(groups))]).rstrip("\n") + "\n"


FIGURES = (
    ("class_il", "", "class_il"),
    ("task_il", "", "task_il"),
    ("forgetting", "", "forgetting"),
    ("flops_paper", "flops", "paper"),
    ("flops_executed", "flops", "executed"),
    ("flops_dense", "flops", "dense"),
    ("train_seconds", "seconds", "train"),
    ("peak_rss_bytes", "memory", "peak_rss_bytes"),
)
"""The figures of the CSV form: heading, and where result.json holds them; unrounded."""


def as_csv(groups: Sequence[Group]) -> str:
    """For other programs: a mean and a standard deviation column for each figure, empty where there is none.

    The settings that tell rows apart are all there, the usual ones too: nothing stands below this table.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["stream", "method", "sparsifier", "sparsity", "pattern", "buffer", "other_settings", "n"]
    pairs = [f"{name}_{part}" for name, _, _ in FIGURES for part in ("mean", "std")]
    known = [f"published_{name}_{part}" for name in ("class_il", "task_il") for part in ("mean", "std")]
    writer.writerow([*names, *pairs, *known, "published_flops_paper"])
    for g in groups:
        stats = [g.stat(section, key) for _, section, key in FIGURES]
        row = g.published
        values = [v for name in ("class_il", "task_il") for v in (getattr(row, name, None) or (None, None))]
        named = [g.stream, g.method, g.sparsifier, g.sparsity, g.pattern, g.buffer, _named(g.settings), len(g.records)]
        cells = [*named, *(v for s in stats for v in (s.mean, s.std)), *values, g.published_flops]
        writer.writerow([neutral.csv_cell(cell) for cell in cells])
    return out.getvalue()
