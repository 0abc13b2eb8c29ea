"""What ranking weights and gradients takes of training: `python benchmarks/ranking.py [--steps 50 600] [--width 64]`.

SparCL-DER++ (or `--method er`) on ResNet-18 and random images: two tasks, the second of so many steps and timed, as the
buffer is full then and the network expands first. Printed is `seconds.importance` as a share of `seconds.train`, as
`result.json` has them: passes back for ranking alone, scoring, and moving the masks; by steps and by fresh batches.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from sparcl import Learner, SparCL, methods
from sparcl.cost.clock import Clock
from sparcl.nn import resnet18
from sparcl.streams import Stream, from_arrays

BATCH = 32


def stream(steps: int) -> Stream:
    """Two tasks of so many steps an epoch, two classes each."""
    labels = torch.arange(4).repeat(steps * BATCH // 2)
    images = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return from_arrays(images, labels, images[:8], labels[:8])


def seconds(steps: int, options: argparse.Namespace, backend: str, ranking: str) -> dict[str, float]:
    """Seconds of the second task."""
    torch.manual_seed(0)
    method = methods.ER(200) if options.method == "er" else methods.DERpp(200)
    sparsifier = SparCL(options.sparsity, ranking=ranking)
    model = resnet18(4, width=options.width)
    clocks: list[Clock] = []

    def watch(event: str, figures: dict[str, Any]) -> None:
        for clock in clocks:
            clock(event, figures)

    learner = Learner(model, method, sparsifier, epochs=1, backend=backend, observers=[watch])
    first, second = stream(steps)
    short = first if steps <= options.first else stream(options.first)[0]
    learner.learn(short)
    clocks.append(Clock())
    learner.learn(second)
    return clocks[0].seconds()


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 600])
    parser.add_argument("--first", type=int, default=10, help="steps of the first task, which fills the buffer")
    parser.add_argument("--backends", nargs="+", default=["native", "reference"])
    parser.add_argument("--rankings", nargs="+", default=["step", "fresh"])
    parser.add_argument("--method", choices=("derpp", "er"), default="derpp")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for backend in options.backends:
        for steps in options.steps:
            for ranking in options.rankings:
                spent = seconds(steps, options, backend, ranking)
                train, share = spent["train"], 100 * spent["importance"] / spent["train"]
                print(f"{backend:10} {steps:6} steps  {ranking:6} {train:8.2f} s  ranking {share:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
