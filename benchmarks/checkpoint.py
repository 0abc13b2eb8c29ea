"""What saving costs: the share of training time that a checkpoint a minute takes.

    python benchmarks/checkpoint.py

ResNet-18 at full width, CIFAR shapes, batch 32, DER++ with a full buffer of 500, SparCL at each sparsity and dense.
Training stands still while a checkpoint is written, so its share is seconds a save / (60 + seconds a save). The folder
is on the disk of `--folder`: syncing is part of the cost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import sparcl
from sparcl import streams
from sparcl.methods import DERpp
from sparcl.nn import resnet18


def learner_inside_a_task(sparsity: float | None, backend: str, buffer: int, width: int) -> sparcl.Learner:
    """One that has made a step, with every slot of its buffer filled."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10_000) % 2
    task = streams.from_arrays(inputs, labels, inputs[:2], labels[:2])[0]
    torch.manual_seed(0)

    class EnoughError(Exception):
        """Training may end."""

    def watch(event: str, figures: dict[str, object]) -> None:
        if event == "step.end" and figures["step"] == 1:
            raise EnoughError

    learner = sparcl.Learner(
        resnet18(10, width=width),
        DERpp(buffer),
        None if sparsity is None else sparcl.SparCL(sparsity),
        backend=backend,
        observers=[watch],
    )
    with contextlib.suppress(EnoughError):
        learner.learn(task)
    memory, generator = learner.method.buffer, torch.Generator().manual_seed(1)
    assert memory is not None
    for _ in range(-(-buffer // 100)):
        memory.add(inputs[:100], labels[:100], torch.rand(100, 10, generator=generator), generator)
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and bytes of a checkpoint; its share at one a minute.")
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--buffer-size", type=int, default=500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to save; default: the system's temporary folder"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for sparsity in (None, 0.75, 0.90, 0.95):
        learner = learner_inside_a_task(sparsity, arguments.backend, arguments.buffer_size, arguments.width)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            times = []
            for _ in range(arguments.saves + 1):  # the first one also takes the fingerprint of the task's data
                began = time.perf_counter()
                path = learner.save(folder)
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            sparcl.Learner.load(folder, backend=arguments.backend)
            loading = time.perf_counter() - began
            size = sum(file.stat().st_size for file in path.iterdir())
        seconds = statistics.median(times[1:])
        row = {
            "sparsity": sparsity,
            "bytes": size,
            "save_ms": 1e3 * seconds,
            "slowest_save_ms": 1e3 * max(times),
            "load_ms": 1e3 * loading,
            "share_at_one_a_minute": seconds / (60 + seconds),
        }
        rows.append(row)
        if not arguments.json:
            print(
                f"{'dense' if sparsity is None else sparsity:>6}  {size / 2**20:6.1f} MiB  save {1e3 * seconds:6.0f} ms"
                f" (slowest {1e3 * max(times):.0f})  load {1e3 * loading:6.0f} ms"
                f"  share {row['share_at_one_a_minute']:.2%}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
