"""Finding and reading the records of runs; what is damaged or unfinished is told, and does not stop the rest."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparcl import regular
from sparcl.errors import one_line
from sparcl.report.events import number, parse
from sparcl.scenarios import told_first

RESULT, CONFIG, EVENTS = "result.json", "config.toml", "events.jsonl"

LIMITS = {RESULT: 64 << 20, CONFIG: 16 << 20, EVENTS: 16 << 20}
"""Bytes of a file (of events.jsonl: of a line) that may be read."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "": ("benchmark", "method", "sparsifier", "seed", "class_il", "task_il", "forgetting"),
    "sparsity": ("weights",),
    "flops": ("executed", "paper", "dense"),
    "seconds": ("train", "total"),
    "memory": ("peak_rss_bytes",),
    "environment": ("cpu", "threads", "device"),
}
"""What a table needs of result.json, by section; figures may be null (not measured), names may not."""

INCIDENTAL = ("data", "init", "layer_choice", "pace", "lazy")
"""Settings that make no different experiment: where the data lies, what a timing chose."""

NUMBERS: dict[str, tuple[type, ...]] = {"sparsity": (float, int)} | dict.fromkeys(
    ("buffer_size", "epochs", "steps"), (int,)
)
"""Settings that are computed with, where there are any."""

UNUSED_BY_DENSE = ("pattern", "block_size", "distribution", "prunable", "first_mask")
"""Settings that a dense run may hold and never looked at."""

NAMES = ("benchmark", "method", "sparsifier", "cpu", "device")


@dataclass(frozen=True)
class Record:
    """A finished run: its resolved settings, without those that it never looked at, and its result."""

    path: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def data(self) -> str | None:
        """Fingerprint of the stream that was learned; None where the result does not name it."""
        held = self.result.get("data")
        return None if held is None else str(held["fingerprint"])

    @property
    def scenarios(self) -> dict[str, str]:
        """Keys and names of the two, that of the run first: `forgetting` is told in it."""
        return told_first(self.config.get("scenario"))

    def figure(self, section: str, name: str) -> float | None:
        """A number of result.json, or None where it was not measured; `forgetting` is that of the run's scenario."""
        holder = self.result[section] if section else self.result
        value = holder[name]
        if name == "forgetting" and isinstance(both := self.result.get("transfer"), dict):
            moved = both.get(next(iter(self.scenarios)))
            value = number(moved.get(name)) if isinstance(moved, dict) else None
        return None if value is None else float(value)

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of events.jsonl; none where there is no such file, damaged lines left out."""
        if not os.path.isfile(self.path / EVENTS):  # a pipe would be waited for
            return
        try:
            with regular.open_regular(self.path / EVENTS, ours=True) as file:
                while line := file.readline(LIMITS[EVENTS]):
                    event = parse(line.decode("utf-8", "replace"))
                    if event is not None and isinstance(event.get("event"), str):
                        yield event
        except OSError:
            return


@dataclass(frozen=True)
class Problem:
    """A place that should have held a finished run, and why it could not be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load(places: Iterable[Path]) -> tuple[list[Record], list[Problem]]:
    """The finished runs at `places` (run directories, or folders that hold some, however deep), and what went wrong.

    A run that repeats another's settings and seed on the same data is left out of the records, and said to be: no seed
    counts twice. An older result, which names no data, may be of any.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    directories: dict[Path, None] = {}
    for place in places:
        if not os.path.isdir(place):  # unlike Path's own, these two raise nothing, whatever the name
            problems.append(Problem(place, "not a directory" if os.path.exists(place) else "no such directory"))
            continue
        found = list(_run_directories(place))
        if not found:
            problems.append(Problem(place, f"holds no run (no {CONFIG} or {RESULT})"))
        directories.update(dict.fromkeys(found))
    for directory in directories:
        read = read_run(directory)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            records.append(read)
    repeated = list(_repeated(records))
    again = {problem.path for problem in repeated}
    return [r for r in records if r.path not in again], problems + repeated


def _repeated(records: Sequence[Record]) -> Iterator[Problem]:
    """Runs that another one repeats; those that name their data come first, so that the order of places is nothing."""
    seen: dict[str, dict[str | None, Path]] = {}
    for record in sorted(records, key=lambda r: r.data is None):
        told = {k: v for k, v in record.config.items() if k not in INCIDENTAL}
        alike = seen.setdefault(json.dumps({**told, "seed": record.seed}, sort_keys=True, default=str), {})
        other = alike.get(record.data)
        if other is None and record.data is None:
            other = next(iter(alike.values()), None)
        if other is None:
            alike[record.data] = record.path
        else:
            yield Problem(record.path, f"same settings, seed and data as {other}; counted once")


def _run_directories(place: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(place):
        if CONFIG in files or RESULT in files:
            yield Path(folder)
            inner.clear()
        inner.sort()


def read_run(directory: Path) -> Record | Problem:
    """The record in a run directory, or why there is none."""
    config_file, result_file = directory / CONFIG, directory / RESULT
    if not os.path.lexists(result_file):
        return Problem(directory, f"not finished (no {RESULT}); go on with --resume")
    for file in (config_file, result_file):
        if file.exists() and not file.is_file():  # a pipe would be waited for
            return Problem(directory, f"{file.name} is not a regular file")
    try:
        config = tomllib.loads(_text(config_file))
    except FileNotFoundError:
        return Problem(directory, f"no {CONFIG}")
    except (OSError, ValueError, RecursionError) as error:
        return Problem(directory, f"{CONFIG} is damaged: {one_line(error)}")
    for name, of_type in NUMBERS.items():
        if name in config and not (type(config[name]) in of_type and _is_number(config[name])):
            return Problem(directory, f"{CONFIG} is damaged: {name} is not a number")
    try:
        text = _text(result_file)
    except (OSError, ValueError) as error:
        return Problem(directory, f"{RESULT} cannot be read: {one_line(error)}")
    result = parse(text)
    if result is None:
        return Problem(directory, f"{RESULT} is damaged: not a JSON object")
    fault = _fault(result)
    if fault:
        return Problem(directory, f"{RESULT} is damaged: {fault}")
    return Record(directory, _looked_at(config, result["sparsifier"]), result)


def _text(file: Path) -> str:
    return regular.read(file, LIMITS[file.name], ours=True).decode("utf-8-sig")


def _looked_at(config: Mapping[str, Any], sparsifier: str) -> Mapping[str, Any]:
    """The settings but for those that changed nothing in the run, so that they part no runs either."""
    unused = UNUSED_BY_DENSE if sparsifier == "dense" else ("block_size",) if config.get("pattern") != "block" else ()
    return {k: v for k, v in config.items() if k not in unused}


def _fault(result: Mapping[str, Any]) -> str | None:
    """What is wrong with a result, or None."""
    for section, names in REQUIRED.items():
        holder = result.get(section) if section else result
        if not isinstance(holder, dict):
            return f"no section {section}"
        for name in names:
            label = f"{section}.{name}" if section else name
            if name not in holder:
                return f"no {label}"
            value = holder[name]
            if name in NAMES:
                if not isinstance(value, str):
                    return f"{label} is not a name"
            elif name in ("seed", "threads"):
                if type(value) is not int:
                    return f"{label} is not a whole number"
            elif value is not None and not _is_number(value):
                return f"{label} is not a number"
    data = result.get("data")
    if data is not None and not (isinstance(data, dict) and isinstance(data.get("fingerprint"), str)):
        return "data.fingerprint is not a name"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
