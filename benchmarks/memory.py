"""Peak memory of a training step, each side in a process of its own: `python benchmarks/memory.py`.

ResNet-18, batch 32, CIFAR shapes: peak resident memory less what it was after `import torch`.
`--activations bfloat16`: those of the native sides are kept so.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from sparcl.nn import ACTIVATIONS, FLOAT32
from sparcl.run.bench import Side, peak_bytes


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", choices=ACTIVATIONS, default=FLOAT32, help="of the native sides")
    options = parser.parse_args()
    base = Side("nchw", threads=options.threads)
    dense = {variant: peak_bytes(replace(base, variant=variant)) for variant in ("nchw", "channels_last")}
    for variant, peak in dense.items():
        print(f"dense {variant:20} {(peak or 0) / 1e6:6.0f} MB")
    for pattern in ("unstructured", "block"):
        for sparsity in (0.75, 0.90, 0.95):
            side = replace(base, variant="native", sparsity=sparsity, pattern=pattern, activations=options.activations)
            peak = peak_bytes(side) or 0
            share = peak / (dense["nchw"] or peak)
            print(f"{pattern:12} {sparsity:.2f}         {peak / 1e6:6.0f} MB  {share:.0%} of dense nchw", flush=True)


if __name__ == "__main__":
    main()
