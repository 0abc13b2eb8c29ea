"""`sparcl sweep`: many runs from one file, each its own process; the finished are skipped, the interrupted resumed.

    [base]                  # settings of every run, as in a run's config.toml
    stream = "seq-cifar10"

    [grid]                  # every combination of these, for every block
    seed = [0, 1, 2]

    [[runs]]                # optional blocks, for a table that is not a full grid
    base = { method = "derpp" }
    grid = { sparsity = [0.75, 0.90] }
    stage = 2               # default 1: after everything of an earlier stage

A combination that is not allowed refuses the file: dense runs, to which a pattern means nothing, are a block apart.
Inside a stage the seeds come last: every row of the table has its first seed before any has its second.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sparcl.errors import ConfigError, SparclError, unknown
from sparcl.run import build, effect, pretrained
from sparcl.run.choosing import FREE
from sparcl.run.damage import damage
from sparcl.run.experiment import Experiment
from sparcl.run.launch import Job, Launcher, Outcome
from sparcl.run.progress import duration, updates_in_place
from sparcl.run.record import RunDirectory, write_atomically
from sparcl.run.resume import difference
from sparcl.run.toml import read_toml
from sparcl.scenarios import told_first
from sparcl.streams import reads_data

SECTIONS = ("base", "grid", "runs")
BLOCK = ("base", "grid", "stage")
IN_NAME = ("stream", "method", "sparsifier", "sparsity", "pattern", "seed")
"""Settings that a run's name holds anyway."""

INCIDENTAL = ("data", "init", "threads", "layer_choice", "pace", "device")
"""Settings in which a finished run may differ from what the file asks for: where, not what."""

ALIKE = 3
"""Runs at a sweep's beginning that fail for one reason, until the others are not tried."""

WORK = ".sweep"
"""The folder beside the runs that holds the settings given to each process, and what it printed."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: a name that no other has, its resolved settings, and which of them the file names."""

    name: str
    experiment: Experiment
    named: frozenset[str]


def read(path: Path, data: str | None = None) -> list[Cell]:
    """The runs of a sweep file, in the order in which they start; every one is checked.

    Args:
        path: the TOML file.
        data: where the data lies, whatever the file says, for every run whose stream reads any.

    Raises:
        ConfigError: anything in the file that is not allowed (names the run); data that no run reads.
    """
    cells: dict[str, tuple[tuple[int, int], Cell]] = {}
    known: dict[str, str] = {}
    for stage, given, values in _combinations(path):
        where = f"{path}: run {', '.join(f'{k}={v}' for k, v in given.items()) or 'of [base]'}"
        try:
            experiment = pretrained.recorded(Experiment.from_dict(values, str(path)).resolve())
            if data is not None and reads_data(experiment.stream):
                experiment = dataclasses.replace(experiment, data=data)
            build.check_parts(experiment)
            effect.check(experiment)
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).removeprefix(f'{path}: ')}") from None
        cell = Cell(_name(experiment, given), experiment, frozenset(values))
        settings = experiment.to_toml()
        if settings in known:
            continue  # two blocks name the same run
        if cell.name in cells:
            raise ConfigError(f"{where}: another run has its name, {cell.name}, but other settings")
        known[settings] = cell.name
        cells[cell.name] = ((stage, experiment.seed), cell)
    if data is not None and not any(reads_data(cell.experiment.stream) for _, cell in cells.values()):
        raise ConfigError(f"--data {data}: no run of {path} reads data; leave it out")
    return [cell for _, cell in sorted(cells.values(), key=lambda placed: placed[0])]


def _combinations(path: Path) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Stage, the settings that tell a run from others, and all its settings."""
    file = read_toml(path)
    _check_keys(str(path), file, SECTIONS)
    base, grid = _table(path, file, "base"), _table(path, file, "grid")
    blocks = file.get("runs", [{}])
    if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in blocks) or not blocks:
        raise ConfigError(f"{path}: runs must be blocks, each headed [[runs]]")
    for number, block in enumerate(blocks, 1):
        label = f"{path}: [[runs]] block {number}"
        _check_keys(label, block, BLOCK)
        own_base, own_grid = _table(label, block, "base"), _table(label, block, "grid")
        both = sorted(own_base.keys() & own_grid.keys()) or sorted(base.keys() & grid.keys())
        if both:
            raise ConfigError(f"{label}: {both[0]} stands in base and in grid; leave one of them out")
        stage = block.get("stage", 1)
        if type(stage) is not int or stage < 1:
            raise ConfigError(f"{label}: stage {stage!r} is not allowed; use 1, 2, ...")
        axes = {**{k: v for k, v in grid.items() if k not in own_base}, **own_grid}
        for key, choices in axes.items():
            if not isinstance(choices, list) or not choices:
                raise ConfigError(f"{label}: grid {key} must be a list of one value or more")
        for choice in itertools.product(*axes.values()):
            given = {**own_base, **dict(zip(axes, choice, strict=True))}
            yield stage, given, {**base, **given}


def _check_keys(label: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    others = [key for key in table if key not in allowed]
    if others:
        hint = "; the settings of one run go to sparcl run --config" if "stream" in others else ""
        raise ConfigError(f"{label}: {unknown('key', others[0], allowed)}{hint}")


def _table(label: str | Path, holder: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = holder.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{label}: {key} must be a table of settings")
    return table


def _name(experiment: Experiment, given: Mapping[str, Any]) -> str:
    """From the run's own settings alone, so that a run added to the file later renames no other."""
    head, _, seed = experiment.name.rpartition("-")
    extra = [f"{key}={_slug(value)}" for key, value in given.items() if key not in IN_NAME]
    return "-".join([head, *extra, seed])


def _slug(value: Any) -> str:
    if isinstance(value, dict):
        text = "+".join(f"{k}={v}" for k, v in value.items())
    elif isinstance(value, list | tuple):
        text = "+".join(map(str, value))
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = re.sub(r"[^A-Za-z0-9.=+_]+", "-", text)
    return plain if len(plain) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:8]


def execute(cells: list[Cell], out: Path, launcher: Launcher, console: Console) -> list[Outcome]:
    """Run every cell that is not finished under `out` and return those that failed.

    Raises:
        ConfigError: before the first run, if a directory holds a run with other settings, or `out` cannot be used;
            after `ALIKE` that failed for the same reason, and none before them did not.
    """
    for cell in cells:
        _check_directory(out / cell.name, cell.experiment, cell.named)
    cells = [_with_threads(cell, launcher.threads) for cell in cells]
    to_run = []
    for cell in cells:
        directory = RunDirectory(out / cell.name)
        damaged = damage(directory) if directory.finished else None
        if damaged is not None:
            console.print(f"{damaged}: it is tried again", markup=False, highlight=False, soft_wrap=True)
        if damaged is not None or not directory.finished:
            to_run.append(cell)
    try:
        jobs = [_job(cell, out) for cell in to_run]
    except OSError as error:
        raise ConfigError(f"{out} cannot be used: {error.strerror}; choose another --out") from None
    begun = sum(RunDirectory(out / cell.name).used for cell in to_run)
    console.print(
        f"{len(cells)} runs: {len(cells) - len(to_run)} finished, {begun} begun before, {len(to_run) - begun} new",
        highlight=False,
    )
    failed: list[Outcome] = []
    scenarios = {cell.name: cell.experiment.scenario for cell in cells}
    with GridProgress(console, len(to_run)) as progress:

        def done(outcome: Outcome) -> None:
            if outcome.reason is None:
                name = outcome.job.name
                progress.finished(name, _accuracy(out / name, scenarios[name]), outcome.seconds)
            else:
                failed.append(outcome)
                progress.failed(outcome.job.name, outcome.reason)
                left = len(to_run) - progress.ended
                alike = len(failed) == progress.ended == ALIKE and len({o.reason for o in failed}) == 1
                if alike and left:  # none will do better: data that is not there, say
                    raise ConfigError(f"the first {ALIKE} runs failed alike: {outcome.reason}; {left} were not begun")

        launcher.run(jobs, progress.started, done)
    if failed:
        console.print(f"failed ({len(failed)}), the others are unharmed:", highlight=False)
        for outcome in failed:
            console.print(f"  {outcome.job.name}: {outcome.reason}", markup=False, highlight=False, soft_wrap=True)
    return failed


def _with_threads(cell: Cell, threads: int | None) -> Cell:
    if cell.experiment.threads is not None or threads is None:
        return cell
    return dataclasses.replace(cell, experiment=dataclasses.replace(cell.experiment, threads=threads))


def _check_directory(directory: Path, experiment: Experiment, named: Collection[str] = ()) -> None:
    """A directory's run must be this one, or a skip would pass another's result off as it."""
    run = RunDirectory(directory)
    run.check_free()
    config = run.config
    if not config.exists():
        return
    try:
        existing = Experiment.from_dict(read_toml(config), str(config)).resolve()
    except SparclError as error:
        raise ConfigError(f"{directory} holds something else: {error}; choose another --out") from None
    if (told := difference(existing, experiment, named, INCIDENTAL)) is not None:
        raise ConfigError(f"{directory} holds a run with {told}; choose another --out")


def _job(cell: Cell, out: Path) -> Job:
    """The process of a cell; its settings are written to a file beside the runs."""
    directory, work = out / cell.name, out / WORK
    experiment, config = cell.experiment, RunDirectory(directory).config
    if config.exists():  # go on as it began: the same threads, hence the same bits
        begun = Experiment.from_dict(read_toml(config), str(config))
        experiment = dataclasses.replace(experiment, threads=begun.threads, layer_choice=begun.layer_choice)
    work.mkdir(parents=True, exist_ok=True)
    if work.is_symlink():
        raise ConfigError(f"{work} is a link, not a folder as a sweep leaves it: move it away")
    settings = work / f"{cell.name}.toml"
    gives_way = set(FREE) - cell.named if experiment.max_memory is not None and not experiment.fitted else set()
    write_atomically(settings, experiment.to_toml(gives_way))
    command = [sys.executable, "-m", "sparcl", "run"]
    command += ["--config", str(settings), "--out", str(directory), "--resume"]
    return Job(cell.name, tuple(command), work / f"{cell.name}.log", experiment.threads or 1)


def _accuracy(directory: Path, scenario: str | None) -> str:
    result = RunDirectory(directory).read_result()
    pairs = [(name, result[key]) for key, name in told_first(scenario).items()]
    told = [f"{name} {value:.2f} %" for name, value in pairs if value is not None]
    return ", ".join(told) or "no test samples"


class GridProgress:
    """Progress over the grid: a line for each run as it ends; on a terminal what is running, below them."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.running: list[str] = []
        self.ended = 0
        self._begun = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> GridProgress:
        if updates_in_place(self.console) and self.total:
            self._live = Live(get_renderable=self._line, console=self.console, refresh_per_second=1, transient=True)
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, name: str) -> None:
        self.running.append(name)

    def finished(self, name: str, accuracy: str, seconds: float) -> None:
        self._end(name, f"{accuracy} in {duration(seconds)}")

    def failed(self, name: str, reason: str) -> None:
        self._end(name, f"FAILED: {reason}")

    def _end(self, name: str, what: str) -> None:
        if name in self.running:
            self.running.remove(name)
        self.ended += 1
        line = Text(f"[{self.ended}/{self.total}] {name}: {what}; time left {self._left()}")
        self.console.print(line, soft_wrap=True)

    def _left(self) -> str:
        """From what the runs so far took, all in all."""
        passed = time.monotonic() - self._begun
        return duration(passed * (self.total - self.ended) / self.ended) if self.ended else "?"

    def _line(self) -> Text:
        return Text(f"{self.ended} of {self.total} done, running: {', '.join(self.running) or 'none'}")
