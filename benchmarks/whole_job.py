"""Seconds per epoch of the published job: `python benchmarks/whole_job.py --data DIR [--steps 200]`.

SparCL-DER++ at .95 on the native backend against dense DER++ in plain PyTorch (channels_last, its faster layout), both
training ResNet-18 at full width on CIFAR-10, buffer 200, batch 32, augmentation and replay included. Each side (with
`--activations float32 bfloat16` there are two sparse ones) trains in turns of twenty steps of its first task, until
`--steps` are timed; an epoch is, by the published schedule, 312 steps of a task of 10,000 samples. For SparCL that is
77.4 % of them on average, since data removal shortens the later epochs (12,080 of 15,600 iterations a task), DGM's
choices (every 30 steps) as they come, and a fifth of a mask update (8 in 50 epochs, and the expansion), timed apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from sparcl import Learner, SparCL, methods, streams
from sparcl.nn import ACTIVATIONS, FLOAT32, resnet18
from sparcl.streams import Task

PUBLISHED_STEPS, PUBLISHED_SHARE, UPDATES_AN_EPOCH = 312, 12080 / 15600, 9 / 50
TURN, WARM_UP = 20, 20


class Pause(Exception):  # noqa: N818
    """A turn is over."""


class Job:
    """One side: a Learner that trains in turns, and the time that its steps took."""

    def __init__(self, sparsity: float | None, activations: str = FLOAT32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        model = resnet18(10, activations=activations)
        if sparsity is None:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.learner = Learner(
            model,
            methods.DERpp(200, alpha=0.1, beta=0.5),
            None if sparsity is None else SparCL(sparsity),
            lr=0.03,
            epochs=50,
            seed=seed,
            backend="reference" if sparsity is None else "native",
            observers=[self.watch],
        )
        self.steps = 0
        self.seconds: list[float] = []

    def watch(self, event: str, figures: dict[str, Any]) -> None:
        """Time each step from the end of the one before, so that all that lies between is in it."""
        del figures
        if event != "step.end":
            return
        now = time.perf_counter()
        self.seconds.append(now - self.before)
        self.before = now
        self.steps += 1
        if self.steps % TURN == 0:
            raise Pause

    def turn(self, task: Task) -> None:
        """Twenty more steps."""
        self.before = time.perf_counter()
        try:
            self.learner.learn(task)
        except Pause:
            return

    def milliseconds(self) -> float:
        """Mean of a step, warm-up excluded: DGM's choices come every 30 steps and belong to it."""
        timed = self.seconds[WARM_UP:]
        return 1000 * sum(timed) / len(timed)

    def update_seconds(self) -> float:
        """Of a mask update; it moves the mask."""
        sparsifier = self.learner.sparsifier
        assert isinstance(sparsifier, SparCL)
        start = time.perf_counter()
        sparsifier.tdm.update()
        return time.perf_counter() - start


def main() -> None:
    """Parse, train both sides in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument(
        "--activations", nargs="+", choices=ACTIVATIONS, default=[FLOAT32], help="a sparse side for each"
    )
    parser.add_argument("--limit-per-class", type=int, help="read only so many images a class (a step costs the same)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = streams.load("seq-cifar10", options.data, limit_per_class=options.limit_per_class).tasks[0]
    sides, dense = {kept: Job(options.sparsity, kept) for kept in options.activations}, Job(None)
    while dense.steps < WARM_UP + options.steps:
        for job in (*sides.values(), dense):
            job.turn(task)
    theirs = dense.milliseconds() * PUBLISHED_STEPS / 1000
    for kept, sparse in sides.items():
        update = sparse.update_seconds()
        ours = sparse.milliseconds() * PUBLISHED_STEPS * PUBLISHED_SHARE / 1000 + update * UPDATES_AN_EPOCH
        name = f"SparCL-DER++ {options.sparsity} native, {kept}"
        print(f"{name}: {sparse.milliseconds():.0f} ms a step, {ours:.1f} s an epoch, mask update {update:.2f} s")
        print(f"an epoch is {theirs / ours:.1f} times faster")
    print(f"DER++ dense PyTorch: {dense.milliseconds():.0f} ms a step, {theirs:.1f} s an epoch")


if __name__ == "__main__":
    main()
