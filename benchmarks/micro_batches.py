"""What micro-batches save and cost: `python benchmarks/micro_batches.py`, each row in a process of its own.

SparCL-DER++ at .95 on ResNet-18 with inputs of 3 × 32 × 32: processor time of a step (median of 16) and the peak of
resident memory less what it was before the Learner was made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

ROWS = ((32, None), (32, 32), (32, 16), (32, 8), (16, None), (8, None), (8, 8))
STEPS = 8


def row(batch: int, micro: int | None, width: int, threads: int) -> None:
    """Train two tasks of noise and print milliseconds and megabytes as JSON."""
    import numpy as np
    import torch

    from sparcl import Learner, SparCL, nn, streams
    from sparcl.cost.memory import resident_bytes
    from sparcl.methods import DERpp

    torch.set_num_threads(threads)
    images = np.random.default_rng(0).integers(0, 256, (640, 3, 32, 32), dtype=np.uint8)
    tasks = streams.from_arrays(images, np.arange(640) * 10 // 640, classes_per_task=5)
    before, took, begun = resident_bytes("VmRSS") or 0, [], [0.0]

    def observe(event: str, figures: object) -> None:
        del figures
        if event == "step.begin":
            begun[0] = time.process_time()
        if event == "step.end":
            took.append(time.process_time() - begun[0])

    settings = {"steps": STEPS, "batch_size": batch, "micro_batch": micro, "backend": "native"}
    learner = Learner(nn.resnet18(10, width=width), DERpp(200), SparCL(0.95), observers=[observe], **settings)
    for task in tasks:
        learner.learn(task)
    peak = (resident_bytes("VmHWM") or 0) - before
    print(json.dumps([1000 * statistics.median(took), peak / 1e6]))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--row", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        row(asked.row[0], asked.row[1] or None, asked.width, asked.threads)
        return
    same = ["--width", str(asked.width), "--threads", str(asked.threads)]
    for batch, micro in ROWS:
        command = [sys.executable, __file__, *same, "--row", str(batch), str(micro or 0)]
        ms, megabytes = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        passes = "whole" if micro is None else f"{micro} at a time"
        print(f"batch {batch:2}, {passes:14} {ms:6.0f} ms  {ms / batch:5.1f} a sample  {megabytes:5.0f} MB", flush=True)


if __name__ == "__main__":
    main()
