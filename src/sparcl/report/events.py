"""The lines of events.jsonl as numbers: after how many training steps each came, and what can be drawn of it.

A line may be damaged or another program's: what is not a usable number is left out, never a reason to stop.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping
from typing import Any

LARGEST = 1e100
"""Numbers beyond it are no measurement, and arithmetic on them would overflow."""


def number(value: object) -> float | None:
    """A finite number that can be computed with, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # NaN is not


def numbers(value: object) -> list[float] | None:
    """A list of which every entry is such a number, or None."""
    if not isinstance(value, list):
        return None
    found = [number(entry) for entry in value]
    return [v for v in found if v is not None] if found and None not in found else None


def index(line: Mapping[str, Any], key: str) -> int:
    """A whole number from 0 of a line; 0 where it has none."""
    value = line.get(key)
    return value if type(value) is int and 0 <= value < 2**62 else 0


def parse(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text is, or None."""
    try:
        value = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _integer(digits: str) -> int:
    """A whole number that a float can hold."""
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError("too many digits")
    return int(digits)


class StepCounter:
    """Training steps of the whole run by the time of each line, told the lines in their order."""

    def __init__(self) -> None:
        self.total = self._before_epoch = 0

    def __call__(self, line: Mapping[str, Any]) -> int:
        """Steps done when `line` was written; a note of a resume does not count, it may stand anywhere."""
        event = line.get("event")
        if event in ("task.begin", "epoch.begin"):
            self._before_epoch = self.total
        elif event != "run.resume":
            self.total = max(self.total, self._before_epoch + index(line, "step"))
        return self.total


def seen(line: Mapping[str, Any], scenario: str) -> list[float] | None:
    """The accuracies of an `evaluate` line on the tasks learned so far, percent; None where there are none."""
    accuracies = numbers(line.get(scenario))
    return accuracies and (accuracies[: index(line, "seen") or index(line, "task") + 1] or None)


def metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line says that can be drawn over training: names and numbers."""
    event = line.get("event")
    if event in ("loss", "loss.epoch"):
        found: dict[str, float | None] = {"loss/steps" if event == "loss" else "loss/epoch": number(line.get("loss"))}
    elif event == "evaluate":
        found = {}
        for scenario in ("class_il", "task_il"):
            accuracies = seen(line, scenario) or []
            if accuracies:
                found[f"accuracy/{scenario}"] = statistics.fmean(accuracies)
            found |= {f"accuracy/{scenario}/task {t}": value for t, value in enumerate(accuracies, 1)}
    elif event == "ddr.remove":
        found = {"samples/kept": number(line.get("kept"))}
    elif event == "dgm.choose":
        active, frozen = number(line.get("active")), number(line.get("frozen"))
        found = {"weights/updated": None if active is None or frozen is None else active - frozen}
    else:
        found = {"weights/active": number(line.get("active"))}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
