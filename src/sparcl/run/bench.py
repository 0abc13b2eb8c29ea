"""`sparcl bench`: what sparsity gains on this device, dense PyTorch against the native backend.

A training step is forward, backward and plain SGD's update on one batch; DGM is off. The sides take turns, so that a
machine that slows down slows all of them down, and each figure is a median. Peak memory is measured apart, each side in
a process of its own: the peak of its resident memory less what it was after `import torch`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import nn

from sparcl import kernels
from sparcl.cost.flops import Profile
from sparcl.errors import ConfigError, unknown
from sparcl.learner.refusals import check_activations
from sparcl.nn import DEFAULT_WIDTH, FLOAT32, build, convert
from sparcl.run.experiment import MOST, MOST_THREADS, MOST_WIDTH, check_range
from sparcl.sparsity.patterns import BLOCK, check_block, make_pattern
from sparcl.sparsity.static import Static

INPUT_SHAPES = {"resnet18": (3, 32, 32), "convnet": (3, 32, 32), "mlp": (1, 28, 28)}
CLASSES = 10
DENSE_VARIANTS = ("nchw", "channels_last", "compile")
SECONDS = 20.0
"""For the timing of all sides together, warm-up excluded."""

STEPS_A_TURN = 3
"""Timed ones, after one that is not: in a training loop the caches hold what the same loop's last step left."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One way to make a training step.

    Attributes:
        variant: `native`, or of dense PyTorch: `nchw`, `channels_last`, `compile` (torch.compile) or `bf16` (autocast).
        sparsity, pattern, block_size, activations: of `native`.
    """

    variant: str
    sparsity: float = 0.0
    pattern: str = "unstructured"
    block_size: int = BLOCK
    activations: str = FLOAT32
    model: str = "resnet18"
    width: int = 64
    batch: int = 32
    threads: int = 1

    def build(self) -> tuple[nn.Module, Step]:
        """The model and its training step."""
        torch.manual_seed(0)
        model = build(self.model, CLASSES, INPUT_SHAPES[self.model], self.width, self.activations)
        return model, self.step_of(model)

    def step_of(self, model: nn.Module) -> Step:
        """The training step of a network that takes what `model` of this side takes; it is converted in place."""
        inputs, labels = torch.randn(self.batch, *INPUT_SHAPES[self.model]), torch.randint(0, CLASSES, (self.batch,))
        if self.variant == "native":
            convert.to_native(model)
        elif self.variant != "nchw" and self.model != "mlp":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        if self.variant == "native":
            Static(self.sparsity, pattern=make_pattern(self.pattern, self.block_size)).attach(model, optimizer)
        forward: Any = torch.compile(model) if self.variant == "compile" else model

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.variant == "bf16"):
                loss = F.cross_entropy(forward(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def theoretical_gain(self) -> float:
        """FLOPs of the dense step over those of this one."""
        dense, own = self.flops()
        return dense / own

    def flops(self) -> tuple[int, int]:
        """Of the dense step and of this one: forward and backward, without the optimizer."""
        model = build(self.model, CLASSES, INPUT_SHAPES[self.model], self.width)
        sparsifier = Static(self.sparsity, pattern=make_pattern(self.pattern, self.block_size))
        sparsifier.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        profile = Profile(model, sparsifier.layers, INPUT_SHAPES[self.model])
        dense, sparse = profile.dense, profile.costs
        return self.batch * (dense.forward + dense.backward), self.batch * (sparse.forward + sparse.backward)


def milliseconds(steps: Mapping[str, Step], seconds: float, warm_up: int = 2) -> dict[str, float]:
    """Median time of each step, by name; the steps take turns for about `seconds` seconds, 6 steps at least."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(warm_up):
            step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 6:
        for name, step in steps.items():
            step()
            for _ in range(STEPS_A_TURN):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def peak_bytes(side: Side) -> int | None:
    """Peak resident memory of a few steps in a process of its own, less that after `import torch`; None if unknown."""
    return peak_apart({"side": asdict(side)}, side.variant)


def peak_apart(asked: Mapping[str, Any], what: str) -> int | None:
    """Peak resident memory of what `sparcl.run.footprint` is asked for, less that after `import torch`."""
    command = [sys.executable, "-m", "sparcl.run.footprint", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"the memory of {what} could not be measured: {said:.200}")
    peak: int | None = json.loads(done.stdout)
    return peak


def measure_all(
    *,
    model: str,
    width: int | None,
    batch: int,
    threads: int | None,
    sparsities: Sequence[float],
    patterns: Sequence[str],
    block_size: int,
    activations: str = FLOAT32,
    compiled: bool,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure; one row for each sparsity and pattern (the fields are `sparcl bench --json`'s, named in its help).

    Raises:
        ConfigError: the compiled part is missing, or a value that is not allowed.
    """
    width = DEFAULT_WIDTH.get(model, 1) if width is None else width  # an unknown model is refused below
    threads = torch.get_num_threads() if threads is None else threads
    _check(model, width, batch, threads, sparsities)
    check_activations(build(model, CLASSES, INPUT_SHAPES[model], width, activations), (batch,), None)
    for pattern in patterns:
        make_pattern(pattern, block_size)
    check_block(block_size, patterns)
    torch.set_num_threads(threads)
    base = Side("nchw", model=model, width=width, batch=batch, threads=threads)
    dense = [replace(base, variant=v) for v in DENSE_VARIANTS if compiled or v != "compile"]
    if model == "mlp":  # it has no images inside, so no layout of them
        dense = [side for side in dense if side.variant != "channels_last"]
    native = [
        replace(base, variant="native", sparsity=s, pattern=p, block_size=block_size, activations=activations)
        for p in patterns
        for s in sparsities
    ]
    tell("timing dense PyTorch and native steps in turn")
    named = {_label(side): side for side in [*dense, *native]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own
        times = milliseconds({label: side.build()[1] for label, side in named.items()}, SECONDS)
    fastest = min(dense, key=lambda side: times[_label(side)])
    tell("measuring memory, each side in a process of its own")
    dense_peak = peak_bytes(replace(fastest, variant="nchw") if fastest.variant == "compile" else fastest)
    return [
        {
            "sparsity": side.sparsity,
            "pattern": side.pattern,
            "dense_ms": times[_label(fastest)],
            "dense_variant": fastest.variant,
            "native_ms": times[_label(side)],
            "speedup": times[_label(fastest)] / times[_label(side)],
            "theoretical_gain": side.theoretical_gain(),
            "peak_dense_bytes": dense_peak,
            "peak_native_bytes": peak_bytes(side),
            "activations": side.activations,
            "isa": kernels.isa(),
            "threads": threads,
            "batch": batch,
            "width": width,
            "model": model,
        }
        for side in native
    ]


def _label(side: Side) -> str:
    return f"{side.variant} {side.sparsity} {side.pattern}"


def _check(model: str, width: int, batch: int, threads: int, sparsities: Sequence[float]) -> None:
    if model not in INPUT_SHAPES:
        raise ConfigError(unknown("model", model, INPUT_SHAPES))
    if not kernels.available():
        raise ConfigError(f"backend native is not available: {kernels.why_unavailable()}")
    check_range("width", width, 1, MOST_WIDTH)
    check_range("batch size", batch, 2, MOST)
    check_range("threads", threads, 1, MOST_THREADS)
    for sparsity in sparsities:
        if not 0.0 <= sparsity <= 0.99:
            raise ConfigError(f"sparsity {sparsity} is not allowed; use a value from 0 to 0.99")


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    first = rows[0]
    where = f"batch {first['batch']}, {first['threads']} thread(s), {first['isa']}, dense {first['dense_variant']}"
    kept = first.get("activations", FLOAT32)
    where += f", activations {kept}" if kept != FLOAT32 else ""
    table = Table(title=f"a training step of {first['model']}, width {first['width']}\n{where}", box=box.SIMPLE_HEAD)
    time, memory = ("dense\nms", "native\nms", "speedup", "of\ntheory"), ("dense\nMB", "native\nMB")
    for heading in ("pattern", "sparsity", *time, *memory):  # 80 columns hold them
        table.add_column(heading, justify="left" if heading == "pattern" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["pattern"],
            f"{row['sparsity']:g}",
            f"{row['dense_ms']:.1f}",
            f"{row['native_ms']:.1f}",
            f"{row['speedup']:.2f}×",
            f"{row['speedup'] / row['theoretical_gain']:.0%}",
            _megabytes(row["peak_dense_bytes"]),
            _megabytes(row["peak_native_bytes"]),
        )
    return table


def _megabytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.0f}"
