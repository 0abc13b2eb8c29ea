"""Does DGM pay? `python benchmarks/dgm.py`: a step of SparCL-DER++ with and without it, its choices included.

ResNet-18, inputs of 3 × 32 × 32, batch 32, native, no mask moves. All shares g of a sparsity take turns of 30 steps, as
many as lie between two choices; printed is the median turn, a step of it, and its ratio to that without DGM.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from sparcl import Learner, SparCL, nn
from sparcl.methods import DERpp

BATCH, TURN, NEVER = 32, 30, 10**9


class Side:
    """A Learner that takes turns."""

    def __init__(self, sparsity: float, share: float, width: int) -> None:
        torch.manual_seed(0)
        sparsifier = SparCL(sparsity, gradients=share, samples=0.0, interval=NEVER)
        self.learner = Learner(nn.resnet18(10, width=width), DERpp(200), sparsifier, backend="native", batch_size=BATCH)
        self.images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
        self.labels = torch.arange(BATCH) % 10
        self.turns: list[float] = []

    def take_turn(self) -> None:
        """Steps in a stream without borders."""
        begun = time.perf_counter()
        for _ in range(TURN):
            self.learner.observe(self.images, self.labels)
        self.turns.append((time.perf_counter() - begun) / TURN)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.75, 0.90, 0.95])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for sparsity in asked.sparsity:
        sides = {g: Side(sparsity, g, asked.width) for g in (0.0, *asked.shares)}
        for turn in range(asked.turns + 1):
            for side in sides.values():
                side.take_turn()
                if turn == 0:  # the buffer fills, and memory is first touched
                    side.turns.clear()
        without = statistics.median(sides[0.0].turns)
        for g, side in sides.items():
            step = statistics.median(side.turns)
            print(f"sparsity {sparsity:.2f}  g {g:.1f}  {1000 * step:7.1f} ms  {step / without:.3f}", flush=True)


if __name__ == "__main__":
    main()
