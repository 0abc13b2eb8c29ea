"""A run in words, and its costs as numbers for people: against the dense cost, and by what they went into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparcl.report.events import number
from sparcl.report.records import Record
from sparcl.scenarios import NAMES

FLOAT_BYTES = 4

ASKED = {"class_il": "without being told the task", "task_il": "when told the task"}


@dataclass(frozen=True)
class Bar:
    """A named amount, as text, and its length in percent of the longest of its like."""

    name: str
    text: str
    length: float


@dataclass(frozen=True)
class Against:
    """A cost beside that of the dense network: both as text, and the share in percent."""

    name: str
    own: str
    dense: str
    share: float


def figure(record: Record, *path: str) -> float | None:
    """A number of result.json by its path, or None."""
    value: Any = record.result
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return number(value)


def amount(value: float, unit: str = "") -> str:
    """A number with a prefix where it is large: 1.24 G."""
    sign, value = "-" if value < 0 else "", abs(value)
    if value >= 1e18:
        return f"{sign}{value:.3g} {unit}".strip()
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{sign}{value / 10**power:.3g} {prefix}{unit}"
    return f"{sign}{value:.3g} {unit}".strip()


def seconds(value: float) -> str:
    """Seconds as people say them."""
    if not 0 <= value < 1e9:
        return f"{value:.3g} s"
    if value < 100:
        return f"{value:.3g} s"
    hours, rest = divmod(round(value), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def percent(value: float) -> str:
    return f"{value:.2f} %" if abs(value) < 1e6 else f"{value:.3g} %"


def summary(record: Record) -> list[str]:
    """Paragraphs on how well the run learned, and what it cost; what was not measured is not mentioned."""
    paragraphs = [_learned(record), [*_computed(record), *_spent(record)]]
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _learned(record: Record) -> list[str]:
    result = record.result
    known = {key: value for key in record.scenarios if (value := figure(record, key)) is not None}
    lost = number(record.figure("", "forgetting"))
    told = [f"{percent(value)} {ASKED[key]} ({NAMES[key]})" for key, value in known.items()]
    sentences = [f"{result['method']} with sparsifier {result['sparsifier']} learned {result['benchmark']}."]
    if told:
        sentences.append(f"In the end it recognizes {', and '.join(told)}, the mean over all tasks.")
    if lost is not None:
        moved = f"lost {lost:.3g}" if lost >= 0 else f"gained {-lost:.3g}"
        name = next(iter(record.scenarios.values()))
        sentences.append(f"On earlier tasks it {moved} percentage points from the best that it had known ({name}).")
    return sentences


def _computed(record: Record) -> list[str]:
    executed, dense = figure(record, "flops", "executed"), figure(record, "flops", "dense")
    weights, updates = figure(record, "sparsity", "weights"), figure(record, "sparsity", "gradients")
    removed = figure(record, "samples", "removed")
    sentences = []
    if executed and dense:
        share = f"{100 * executed / dense:.3g} % of the dense network's {amount(dense)}"
        fewer = f", {dense / executed:.3g} times fewer" if dense > 1.005 * executed else ""
        sentences.append(f"Training executed {amount(executed)} floating-point operations: {share}{fewer}.")
    if weights:
        unmoved = "" if updates is None else f", and {100 * updates:.3g} % were not updated"
        sentences.append(f"{100 * weights:.3g} % of the prunable weights were zero{unmoved}.")
    if removed:
        sentences.append(f"{removed:,.0f} training samples were learned well enough to leave before their task's end.")
    return sentences


def _spent(record: Record) -> list[str]:
    train, total = figure(record, "seconds", "train"), figure(record, "seconds", "total")
    peak = figure(record, "memory", "peak_rss_bytes")
    sentences = []
    if train is not None and total is not None:
        sentences.append(f"It took {seconds(total)}, {seconds(train)} of them training.")
    if peak is not None:
        sentences.append(f"The process held {amount(peak, 'B')} at its peak.")
    return sentences


def against_dense(record: Record) -> list[Against]:
    """FLOPs and bytes beside what the dense network would take; empty for a dense run."""
    if record.result["sparsifier"] == "dense":
        return []
    whole = figure(record, "sparsity", "total")
    dense_bytes = None if whole is None else whole * FLOAT_BYTES
    stored = [figure(record, "memory", key) for key in ("parameter_bytes", "index_bytes")]
    rows = [
        ("FLOPs of training", figure(record, "flops", "executed"), figure(record, "flops", "dense"), ""),
        ("weights with positions", None if None in stored else sum(v or 0.0 for v in stored), dense_bytes, "B"),
        ("gradients", figure(record, "memory", "gradient_bytes"), dense_bytes, "B"),
    ]
    return [
        Against(name, amount(own, unit), amount(dense, unit), 100 * own / dense)
        for name, own, dense, unit in rows
        if own is not None and dense
    ]


FLOPS_PHASES = {
    "forward": "forward passes",
    "backward": "backward passes",
    "importance": "ranking weights and gradients",
    "other": "when a task begins or ends",
}
BYTES = {
    "parameter_bytes": "weights",
    "index_bytes": "their positions",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "buffer_bytes": "rehearsal buffer",
}


def flops_bars(record: Record) -> list[Bar]:
    """Executed FLOPs by phase."""
    found = {name: figure(record, "flops", "phases", key) for key, name in FLOPS_PHASES.items()}
    return bars(found, amount)


def seconds_bars(record: Record) -> list[Bar]:
    """Wall clock by phase: the four add up to the run's total."""
    train, importance, evaluate, total = (
        figure(record, "seconds", key) for key in ("train", "importance", "evaluate", "total")
    )
    known = {"steps of training": None if train is None else train - (importance or 0.0)}
    known |= {"ranking weights and gradients": importance, "evaluation": evaluate}
    rest = None if train is None or evaluate is None or total is None else max(0.0, total - train - evaluate)
    return bars({**known, "reading, saving, the rest": rest}, seconds)


def bytes_bars(record: Record) -> list[Bar]:
    """What training holds between steps, in compact form."""
    return bars({name: figure(record, "memory", key) for key, name in BYTES.items()}, lambda v: amount(v, "B"))


def bars(values: Mapping[str, float | None], form: Any) -> list[Bar]:
    """Those of the values that are known; the longest has length 100."""
    known = {name: value for name, value in values.items() if value is not None and value >= 0}
    longest = max(known.values(), default=0.0) or 1.0
    return [Bar(name, form(value), round(100 * value / longest, 1)) for name, value in known.items()]
