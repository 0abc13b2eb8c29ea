"""A long life: 200 tiny tasks, with checkpoints; memory and time per step must not grow.

python tests/robustness/soak.py        (`make soak`)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import sparcl
from sparcl import streams
from sparcl.methods import DERpp
from sparcl.nn import ConvNet


@dataclass
class Sample:
    """After a task: resident memory in bytes, and the median seconds of its steps."""

    memory: int
    step: float


def resident() -> int:
    """Resident set of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS here")


def soak(tasks: int, backend: str, folder: Path, steps: int = 6) -> list[Sample]:
    """Learn `tasks` tasks of two classes, one after another, and look after each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * tasks).repeat_interleave(4 * steps)
    inputs = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=generator)
    stream = streams.from_arrays(inputs, labels, inputs[:: 2 * steps], labels[:: 2 * steps])
    torch.manual_seed(0)
    began, times = 0.0, []

    def watch(event: str, _: object) -> None:
        nonlocal began
        if event == "step.begin":
            began = time.perf_counter()
        elif event == "step.end":
            times.append(time.perf_counter() - began)

    learner = sparcl.Learner(
        ConvNet(2 * tasks, 1, 8),
        DERpp(100),
        sparcl.SparCL(0.9),
        epochs=2,
        batch_size=8,
        backend=backend,
        observers=[watch],
        checkpoint_dir=folder,
        checkpoint_every=3 * steps,
    )
    found = []
    for task in stream:
        learner.learn(task)
        learner.evaluate([task])
        found.append(Sample(resident(), statistics.median(times)))
        times.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn many tiny tasks; memory and time per step must not grow.")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.tasks, arguments.backend, Path(folder))
    early, late = found[19], found[-1]
    first, last = (statistics.median(s.step for s in part) for part in (found[10:30], found[-20:]))
    grown, slower = late.memory / early.memory - 1, last / first - 1
    print(
        f"memory after task 20: {early.memory / 2**20:.1f} MiB, after task {len(found)}: {late.memory / 2**20:.1f} MiB"
    )
    print(f"growth of memory: {grown:+.1%}")
    print(f"median step of tasks 11-30: {first * 1e3:.2f} ms, of the last 20: {last * 1e3:.2f} ms ({slower:+.1%})")
    assert grown < 0.05, "memory grows"
    assert slower < 0.25, "steps become slower"


if __name__ == "__main__":
    main()
