"""`sparcl bench --job`: what fits into S seconds on this device, before anything is trained.

Every side is a Learner as `sparcl run` makes it, on noise of the stream's shape: method, replay, masks, choices and the
buffer are real, only the data is not. The sides take turns, a short task each, so that a machine that slows down slows
all of them down. A step's cost is the median of steps in which no mask moved; what an update of the mask, a choice of
gradients and the reading of a step's gradients for them take on top is measured apart and charged as often as a task of
that length has it.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from sparcl import kernels, methods
from sparcl.cost.memory import memory
from sparcl.errors import ConfigError
from sparcl.learner import Learner
from sparcl.learner.budget import check_seconds
from sparcl.nn import BFLOAT16, FLOAT32
from sparcl.run import build
from sparcl.run.bench import peak_apart
from sparcl.run.experiment import MOST, Experiment, check_range
from sparcl.run.resume import settings
from sparcl.sparsity.collected import MOST_SHARE
from sparcl.sparsity.dgm import DGM
from sparcl.sparsity.patterns import PATTERNS, check_block
from sparcl.sparsity.rigl import UPDATES_AT_LEAST, RigL
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.tdm import TDM, updates_within
from sparcl.streams.batches import steps as steps_of_epoch
from sparcl.streams.split import from_arrays
from sparcl.streams.task import Stream, Task

SHAPES = {
    "seq-digits": ((1, 8, 8), 10, 290),
    "seq-mnist": ((1, 28, 28), 10, 12_000),
    "seq-fashion-mnist": ((1, 28, 28), 10, 12_000),
    "seq-cifar10": ((3, 32, 32), 10, 10_000),
    "seq-cifar100": ((3, 32, 32), 100, 5_000),
    "seq-tinyimg": ((3, 64, 64), 200, 10_000),
}
"""Of a stream: one image, classes, training images of a task."""

TURN = 12
"""Steps of a side's turn; the first two of a turn only warm its caches."""

SECOND_EPOCH = 4
"""Steps more of a turn of SET, whose mask moves after an epoch, which is a turn or less."""

CHOICE_EVERY = 4
"""Steps between two of DGM's choices while it is timed: a turn has each kind of step, and some of no kind."""

TURNS = 5
EVALUATED = 256
SPARSITIES = (0.75, 0.90, 0.95)
"""Those that are asked for where none is named."""


@dataclass
class Side:
    """One row: a Learner, and what its steps took."""

    experiment: Experiment
    learner: Learner
    plain: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """What comes every 30 steps, and what a short task does not pay for, comes often enough to be timed apart."""
        sparsifier = self.learner.sparsifier
        if not isinstance(sparsifier, SparCL):
            return
        sparsifier.dgm.interval = CHOICE_EVERY
        if sparsifier.ranking == "step":
            sparsifier.tdm.batches, sparsifier.tdm.collected.budget.share = 1, 1.0

    def take_turn(self, task: Task, turn: int) -> None:
        """Learn one short task; from the second turn on the buffer is in use, and steps count."""
        events: list[str] = []
        began = [0.0]
        steps = itertools.count(1)  # of the turn: a task of few samples has epochs of a step or two

        def observe(event: str, _: dict[str, Any]) -> None:
            if event == "step.end":
                now = time.perf_counter()
                if next(steps) > 2 and turn:
                    self._note(now - began[0], events)
                events.clear()
                began[0] = time.perf_counter()
            elif event == "epoch.begin":
                began[0] = time.perf_counter()
            else:
                events.append(event)

        self.learner.observers = [observe]
        self.learner.learn(dataclasses.replace(task, index=turn))
        self.learner.observers = []
        start = time.perf_counter()
        self.learner.evaluate([task])
        self.evaluation.append((time.perf_counter() - start) / EVALUATED)

    def _note(self, seconds: float, events: Sequence[str]) -> None:
        moved = any(e.endswith((".update", ".shrink")) for e in events)
        chosen, read = "dgm.choose" in events, "importance.passed" in events
        kind = self.updates if moved else self.choices if chosen else self.reads if read else self.plain
        kind.append(seconds)

    def peak_bytes(self, samples: int) -> int | None:
        """Peak memory of two turns in a process of its own, less that of the imports; None on a GPU."""
        if self.learner.device.type != "cpu":
            return None
        asked = dataclasses.replace(
            self.experiment, layer_choice=self.learner.layer_choice, threads=torch.get_num_threads()
        )
        values = settings(asked)
        return peak_apart(
            {"job": {k: v for k, v in values.items() if v is not None}, "samples": samples}, label(values)
        )

    def fits(self, seconds: float, samples: int) -> dict[str, Any]:
        """The row: how many steps and epochs fit into so many seconds of a task with so many samples."""
        kinds = (self.updates, self.choices, self.reads)
        step = statistics.median(self.plain or itertools.chain(*kinds))  # a mask may move in every step
        update, choice, read = (max(0.0, statistics.median(times) - step) if times else 0.0 for times in kinds)
        held = memory(
            self.learner.model, self.learner.optimizer, self.learner.sparsifier.layers, self.learner.method.buffer
        )
        row: dict[str, Any] = {
            "method": self.experiment.method,
            "sparsifier": self.experiment.sparsifier,
            "sparsity": self.experiment.sparsity,
            "pattern": self.experiment.pattern,
            "activations": self.experiment.activations or FLOAT32,
            "single_head": self.experiment.single_head,
            "step_ms": 1000 * step,
            "update_ms": 1000 * update,
            "choice_ms": 1000 * choice,
            "read_ms": 1000 * read,
            "read_share": self._read_share(),
            "evaluate_image_ms": 1000 * statistics.median(self.evaluation),
            "parameter_bytes": held["parameter_bytes"],
            "buffer_bytes": held["buffer_bytes"],
            "samples": samples,
            "batch_size": self.experiment.batch_size,
            "drop_last": self.learner.drop_last,
        }
        steps = steps_within(seconds, row)
        return {**row, "seconds": seconds, "steps": steps, "epochs": steps / a_pass(row)}

    def _read_share(self) -> float:
        """What the reading of a step is taken to cost, in steps, where it is decided how many are read; 0: none is."""
        sparsifier = self.learner.sparsifier
        return sparsifier.tdm.collected.budget.cost if isinstance(sparsifier, SparCL) else 0.0


def steps_within(seconds: float, row: Mapping[str, Any]) -> int:
    """Steps that fit into so many seconds, by a row's costs; updates of the mask, choices and readings charged."""
    steps = 0
    for _ in range(8):  # how often a mask moves depends on how many steps there are
        extra = updates_of(row, steps) * row["update_ms"] + choices_of(row, steps) * row["choice_ms"]
        extra += reads_of(row, steps) * row.get("read_ms", 0.0)
        steps = max(0, int((1000 * seconds - extra) / row["step_ms"]))
    return steps


def a_pass(row: Mapping[str, Any]) -> int:
    """Steps of a pass over a task; rows of before do not say what becomes of a last partial batch."""
    return steps_of_epoch(row["samples"], row["batch_size"], row.get("drop_last", True))[0]


def updates_of(row: Mapping[str, Any], steps: int) -> int:
    """How often a mask moves in a task of so many steps."""
    match row["sparsifier"]:
        case "sparcl":
            return updates_within(steps)
        case "rigl":
            usual = RigL()
            return int(usual.stop * steps / max(1, min(usual.every, steps // UPDATES_AT_LEAST)))
        case "set":
            return max(0, steps - 1) // a_pass(row)
    return 0


def choices_of(row: Mapping[str, Any], steps: int) -> int:
    """How often DGM chooses in a task of so many steps."""
    return steps // DGM().interval if row["sparsifier"] == "sparcl" else 0


def reads_of(row: Mapping[str, Any], steps: int) -> int:
    """How many of a task's steps are read for ranking: as many as are asked for, or as many as the task pays for."""
    if not (cost := row.get("read_share", 0.0)):  # rows of before do not say
        return 0
    asked = 1 + choices_of(row, steps) + updates_of(row, steps) * TDM().batches
    return min(asked, 1 + int(MOST_SHARE * steps / cost))


def noise(experiment: Experiment, samples: int) -> Stream:
    """One task of the stream's shape, all its classes in it; as many images as a turn needs."""
    shape, classes, _ = SHAPES[experiment.stream]
    count = min(max(TURN * experiment.batch_size, classes), max(samples, 2, classes))
    generator = np.random.default_rng(0)
    labels = np.arange(max(count, EVALUATED)) % classes
    images = generator.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    return from_arrays(
        images[:count], labels[:count], images[:EVALUATED], labels[:EVALUATED], classes_per_task=classes, name="noise"
    )


def measure(
    experiments: Sequence[Experiment], seconds: float, samples: int | None, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row for each experiment (their stream, model and threads are the same); see `Side.fits`."""
    check_time(seconds, samples)
    for experiment in experiments:
        method = methods.find(experiment.method)
        if method.learns_all_at_once or issubclass(method, methods.ICaRL) or "class-il" not in method.scenarios:
            reason = "learns all tasks at once" if method.learns_all_at_once else "takes no class twice"
            raise ConfigError(f"method {experiment.method} {reason}, and a job is timed by tasks of the same classes")
    first = experiments[0].resolve()
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    samples = SHAPES[first.stream][2] if samples is None else samples
    stream = noise(first, samples)
    sides = []
    for experiment in experiments:
        steps = TURN + (SECOND_EPOCH if experiment.sparsifier == "set" else 0)
        asked = dataclasses.replace(experiment, epochs=None, steps=steps, max_seconds=None).resolve()
        sides.append(Side(asked, build.learner(asked, stream)))
    for turn in range(TURNS + 1):
        tell(f"timing {len(sides)} kinds of training in turn: {turn}/{TURNS}")
        for side in sides:
            side.take_turn(stream[0], turn)
    where = {
        "threads": torch.get_num_threads(),
        "device": str(sides[0].learner.device),
        "isa": kernels.isa() if kernels.available() else None,
    }
    shared = {"stream": first.stream, "model": first.model, "width": first.width}
    rows = [{**side.fits(seconds, samples), **shared, **where} for side in sides]
    for number, (side, row) in enumerate(zip(sides, rows, strict=True)):
        tell(f"measuring memory, each row in a process of its own: {number}/{len(rows)}")
        try:
            row["peak_bytes"] = side.peak_bytes(samples)
        except ConfigError as error:  # what was timed is not lost for it
            row["peak_bytes"] = None
            tell(str(error))
    return rows


def two_turns(asked: dict[str, Any], samples: int) -> None:
    """What `Side.peak_bytes` measures, where it runs; in the second turn samples are replayed."""
    experiment = Experiment.from_dict(asked, "job").resolve()
    stream = noise(experiment, samples)
    learner = build.learner(experiment, stream)
    for turn in range(2):
        learner.learn(dataclasses.replace(stream[0], index=turn))


def rows_of(
    base: Mapping[str, Any],
    sparsifiers: Sequence[str],
    sparsities: Sequence[float] | None,
    patterns: Sequence[str] | None,
    block_size: int,
    activations: str | None = None,
) -> list[Experiment]:
    """Dense, then each sparsifier at each sparsity in each pattern; None: the usual ones.

    Raises:
        ConfigError: a setting that is not allowed, or a stream whose shape is not known without its data.
    """
    dense: dict[str, Any] = {"sparsifier": "dense"}
    blocks: dict[str, dict[str, Any]] = {"unstructured": {}, "block": {"block_size": block_size}}
    kept = {} if activations is None else {"activations": activations}  # dense PyTorch keeps its own
    asked = [
        {"sparsifier": name, "sparsity": sparsity, "pattern": pattern, **blocks.get(pattern, {}), **kept}
        for name in sparsifiers
        if name != "dense"  # its row is there whatever is asked for
        for pattern in patterns or blocks
        for sparsity in sparsities or SPARSITIES
    ]
    if not asked:  # what is given has no row that it goes with
        dense |= {"block_size": block_size}
        dense |= {} if not sparsities else {"sparsity": max(sparsities)}
        dense |= {} if not patterns else {"pattern": patterns[0]}
        dense |= kept
    check_block(block_size, patterns or PATTERNS)
    experiments = [Experiment.from_dict({**base, **row}, "options") for row in [dense, *asked]]
    if (stream := base["stream"]) not in SHAPES:
        raise ConfigError(f"the shape of {stream} is not known without its data; allowed: {', '.join(SHAPES)}")
    return list({repr(experiment): experiment for experiment in experiments}.values())


def check_time(seconds: float, samples: int | None) -> None:
    """Raise ConfigError unless a task may have so many seconds and samples."""
    check_seconds("seconds", seconds)
    if samples is not None:
        check_range("samples", samples, 2, MOST)


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    first = rows[0]
    title = f"{first['seconds']:g} s a task: {first['stream']}, {first['model']} of width {first['width']}"
    where = f"{first['method']}, batch {first['batch_size']}, {first['threads']} thread(s), {first['samples']} images"
    table = Table(title=f"{title}\n{where}", box=box.SIMPLE_HEAD)
    for heading in ("trained", "step\nms", "mask\nms", "steps", "epochs", "test\nms/image", "peak\nMB"):
        table.add_column(heading, justify="left" if heading == "trained" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            label(row),
            f"{row['step_ms']:.1f}",
            f"{row['update_ms']:.0f}",
            str(row["steps"]),
            f"{row['epochs']:.1f}",
            f"{row['evaluate_image_ms']:.2f}",
            "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
        )
    return table


def label(row: Mapping[str, Any]) -> str:
    """A row's name for people: `dense`, `sparcl 0.9 block bfloat16`."""
    name = [row["sparsifier"], *([] if row["sparsity"] is None else [f"{row['sparsity']:g}"])]
    more = [row["pattern"] == "block" and "block", row.get("activations") == BFLOAT16 and BFLOAT16]
    return " ".join([*name, *filter(None, more)])
