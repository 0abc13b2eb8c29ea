"""A training step of ResNet-18, dense PyTorch against native: `python benchmarks/train_step.py [--avx2] [--compile]`.

Forward, backward and SGD's update at batch 32, CIFAR shapes, width 64. The sides take turns in one process for
`--seconds`; figures are medians. Dense is NCHW, channels_last and (with `--compile`) torch.compile, fp32; bf16 autocast
is timed for information. Native is timed at .75, .90 and .95, unstructured and in blocks of 4, without DGM and with it
at the published setting (a fifth of the active weights frozen). DGM's choice, two more passes in 30 steps, is timed
apart and a thirtieth of it added. `--avx2` holds both sides to AVX2. GFLOP/s count the operations really done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from sparcl import kernels
from sparcl.nn import ACTIVATIONS, FLOAT32
from sparcl.run.bench import DENSE_VARIANTS, Side, Step, milliseconds
from sparcl.sparsity import DGM, Losses
from sparcl.sparsity.patterns import make_pattern

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "SPARCL_ISA": "avx2"}
DGM_INTERVAL = 30


def with_dgm(side: Side) -> tuple[Step, float]:
    """The step with DGM's choice made, and the milliseconds of making it."""
    model, step = side.build()
    inputs, labels = torch.randn(side.batch, 3, 32, 32), torch.randint(0, 10, (side.batch,))
    dgm = DGM(0.2, pattern=make_pattern(side.pattern)).attach(model, torch.optim.SGD(model.parameters(), lr=0.001))
    loss = lambda: F.cross_entropy(model(inputs), labels)  # noqa: E731
    dgm.begin_task(0, samples=1000, epochs=1, losses=Losses(loss, loss))
    dgm.choose()
    start = time.perf_counter()
    dgm.choose()
    return step, 1000 * (time.perf_counter() - start)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--activations", choices=ACTIVATIONS, default=FLOAT32, help="of the native sides")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--avx2", action="store_true", help="hold both sides to AVX2")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.avx2 and os.environ.get("SPARCL_ISA") != "avx2":  # read when the libraries are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2})
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    base = Side("nchw", threads=options.threads, batch=options.batch)
    dense = [name for name in DENSE_VARIANTS if options.compile or name != "compile"]
    steps = {name: replace(base, variant=name).build()[1] for name in [*dense, "bf16"]}
    flops = dict.fromkeys(steps, base.flops()[0])
    refresh: dict[str, float] = {}
    native = replace(base, variant="native", activations=options.activations)
    for pattern in ("unstructured", "block"):
        for sparsity in (0.75, 0.90, 0.95):
            side, name = (
                replace(native, sparsity=sparsity, pattern=pattern),
                f"{pattern} {sparsity:.2f}",
            )
            steps[name], flops[name] = side.build()[1], side.flops()[1]
            steps[f"{name} DGM"], refresh[f"{name} DGM"] = with_dgm(side)
    times = milliseconds(steps, options.seconds)
    for name, milliseconds_of_choice in refresh.items():
        times[name] += milliseconds_of_choice / DGM_INTERVAL
    fastest = min(dense, key=times.__getitem__)
    print(f"{kernels.isa()}, {options.threads} threads, batch {options.batch}; dense is {fastest}")
    for name, taken in times.items():
        rate = f"{flops[name] / taken / 1e6:6.0f} GFLOP/s" if name in flops else ""
        print(f"{name:24} {taken:7.1f} ms {times[fastest] / taken:6.2f}x {rate}".rstrip())
    if options.json:
        options.json.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
