"""How a native training step grows with density, width, batch and threads: `python benchmarks/scaling.py`.

ResNet-18, CIFAR shapes, forward, backward and SGD's update; medians. One axis moves at a time, the others stay at
density .05, width 64, batch 32 and `--threads`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from sparcl.run.bench import Side, milliseconds


def main() -> None:
    """Parse, time one axis after the other, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each axis")
    options = parser.parse_args()
    base = Side("native", 0.95, options.pattern, threads=options.threads)
    axes: dict[str, dict[str, Side]] = {
        "density": {f"{d:.2f}": replace(base, sparsity=1 - d) for d in (0.01, 0.02, 0.05, 0.10, 0.15, 0.20, 0.25)},
        "width": {f"{width}": replace(base, width=width) for width in (16, 32, 64)},
        "batch": {f"{batch}": replace(base, batch=batch) for batch in (8, 16, 32, 33, 64, 128)},
    }
    torch.set_num_threads(options.threads)
    for axis, sides in axes.items():
        times = milliseconds({name: side.build()[1] for name, side in sides.items()}, options.seconds)
        print(f"{axis}: " + ", ".join(f"{name} {taken:.1f} ms" for name, taken in times.items()), flush=True)
    step = base.build()[1]
    for threads in range(1, options.threads + 1):
        torch.set_num_threads(threads)
        taken = milliseconds({"step": step}, options.seconds / 4)["step"]
        print(f"threads: {threads} {taken:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
