"""What a training step costs behind a frozen front: ResNet-18 on CIFAR's shapes, one thread, process CPU time.

    python benchmarks/frozen.py

DER++ (buffer 200, batch 32) under SparCL at .90. Each side learns one task of noise after another; the sides take their
turns step by step, so that what else the machine does falls on all of them alike. Told are medians of a step, and what
computing the latents of one image takes, once.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import sparcl
from sparcl import methods, streams
from sparcl.errors import DataWarning
from sparcl.nn import resnet18

FREEZE = "stem,layer1,layer2"
SIDES: dict[str, dict[str, Any]] = {
    "nothing frozen": {},
    "frozen": {"freeze": FREEZE},
    "frozen, latents float16": {"freeze": FREEZE, "latents": "float16"},
    "frozen, latents int8": {"freeze": FREEZE, "latents": "int8"},
}


class Side:
    """One way to train, a step at a time."""

    def __init__(self, options: dict[str, Any], images: int, width: int, sparsity: float) -> None:
        torch.manual_seed(0)
        sparsifier = sparcl.SparCL(sparsity) if sparsity else None
        self.learner = sparcl.Learner(
            resnet18(10, width=width), methods.DERpp(200), sparsifier, epochs=1000, input_shape=(3, 32, 32), **options
        )
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        y = torch.arange(images) % 2
        self.task = streams.Task(0, (0, 1), streams.Samples(x, y))
        self.steps: list[float] = []
        self.front = 0.0
        self.training = self._steps()

    def _steps(self) -> Iterator[None]:
        """The task's steps: the loop's own parts, so that two Learners can take turns."""
        learner = self.learner
        with learner.generators.lent():
            began = time.process_time()
            learner._enter(self.task)
            self.front = (time.process_time() - began) / len(self.task.train)
        position = learner.position
        assert position is not None
        while True:
            with learner.generators.lent():
                learner._begin_epoch(position)
            while position.upcoming(learner.drop_last):
                with learner.generators.lent():
                    began = time.process_time()
                    learner._step(position)
                    self.steps.append(time.process_time() - began)
                yield
            position.epoch, position.step, position.cursor, position.order = position.epoch + 1, 0, 0, None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.90)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DataWarning)
    sides = {name: Side(options, asked.images, asked.width, asked.sparsity) for name, options in SIDES.items()}
    for _ in range(asked.steps + 5):
        for side in sides.values():
            next(side.training)
    medians = {name: statistics.median(side.steps[5:]) for name, side in sides.items()}
    whole = medians["nothing frozen"]
    for name, side in sides.items():
        buffer = side.learner.method.buffer
        assert buffer is not None
        once = f", {1000 * side.front:.1f} ms an image once" if side.learner.latents is not None else ""
        kept = buffer.inputs[:1].nbytes if buffer.inputs is not None else 0
        took = 1000 * medians[name]
        print(
            f"{name:26} {took:7.1f} ms a step, {whole / medians[name]:.2f} times faster, {kept:6} bytes a sample{once}"
        )


if __name__ == "__main__":
    main()
