"""What gives way to memory: the batch, or whole passes? `python experiments/batches.py OUT [--data CIFAR10]`.

SparCL-DER++ .90 at equal seconds of training, by the measured cost of a step: batches of 32 whole (so many steps a task
as are given) and in micro-batches, and smaller batches, replay as large as the task's. Five seeds; runs that are done
are skipped, so that it can be stopped; each is a line of OUT, the costs are the first. Embedded digits, or with --data
Split CIFAR-10 as in equal-time.toml at a budget of one dense epoch (three minutes a run).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import lines
import torch

from sparcl.run import build, job
from sparcl.run.experiment import Experiment

ROWS: tuple[tuple[int, int | None], ...] = ((32, None), (32, 32), (32, 16), (32, 8), (16, None), (8, None))
"""Batch and micro-batch; the first is the measure."""
SEEDS = range(5)
DIGITS = {"stream": "seq-digits", "steps": 100}
CIFAR = {"stream": "seq-cifar10", "steps": 313, "width": 32, "limit_per_class": 1000, "limit_test_per_class": 200}


def experiment(settings: dict[str, Any], row: tuple[int, int | None], **more: Any) -> Experiment:
    """Of one row."""
    own = {"sparsifier": "sparcl", "sparsity": 0.9, "threads": 1, "batch_size": row[0]}
    own |= {} if row[1] is None else {"micro_batch": row[1]}
    return Experiment.from_dict({**settings, **own, **more}, "row").resolve()


def costs(settings: dict[str, Any]) -> list[float]:
    """Milliseconds a step of each row, in turn."""
    samples = settings.get("limit_per_class", 100) * 2
    measured = job.measure([experiment(settings, row) for row in ROWS], 60.0, samples, lambda _: None)
    return [round(row["step_ms"], 3) for row in measured]


def run(asked: Experiment) -> float:
    """One run's Class-IL accuracy."""
    torch.set_num_threads(1)
    stream = build.stream(asked)
    learner = build.learner(asked, stream)
    for task in stream:
        learner.learn(task)
    return statistics.mean(learner.evaluate().class_il)


def main() -> None:
    """Measure, run what is missing, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data")
    asked = parser.parse_args()
    settings = DIGITS if asked.data is None else {**CIFAR, "data": asked.data}
    if not (known := lines.read(asked.out)):
        known = [{"step_ms": costs(settings)}]
        lines.add(asked.out, known[0])
    first, *rows = known
    steps = [max(1, int(settings["steps"] * first["step_ms"][0] / ms)) for ms in first["step_ms"]]
    done = {(row["batch"], row["micro"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for row, count in zip(ROWS, steps, strict=True):
            if (*row, seed) in done:
                continue
            accuracy = run(experiment(settings, row, steps=count, seed=seed))
            rows.append({"batch": row[0], "micro": row[1], "steps": count, "seed": seed, "class_il": accuracy})
            lines.add(asked.out, rows[-1])
    for row, count, ms in zip(ROWS, steps, first["step_ms"], strict=True):
        values = [r["class_il"] for r in rows if (r["batch"], r["micro"]) == row]
        parts = "whole" if row[1] is None else f"in parts of {row[1]}"
        told = f"batch {row[0]} {parts}, {ms} ms a step, {count} steps"
        print(f"{told:52} {statistics.mean(values):5.1f} ± {statistics.stdev(values):.1f}")


if __name__ == "__main__":
    main()
