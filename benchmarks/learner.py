"""What making a Learner of ResNet-18 takes: `auto` measuring its layers, remembering them, and without `auto`.

    python benchmarks/learner.py --runs 7

CIFAR shapes, batch 32, width 64, SparCL at .90, one thread. Each in a process of its own, after the imports, in turn
with the others: seconds of the processor, medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

MAKE = """
import sys, time, torch, sparcl
from sparcl.nn import resnet18
from sparcl.sparsity import SparCL
torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # whatever PyTorch imports for any optimizer
model = resnet18(10)
start = time.process_time()
sparcl.Learner(model, sparsifier=SparCL(0.90), backend=sys.argv[1], batch_size=32, input_shape=(3, 32, 32))
print(time.process_time() - start)
"""


def seconds(backend: str, cache: str) -> float:
    """Of the processor, in a new process."""
    environment = {**os.environ, "SPARCL_CACHE": cache}
    command = [sys.executable, "-c", MAKE, backend]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"auto, measured": [], "auto, remembered": [], "native": []}
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as cache:
            for name, taken in times.items():  # the second finds what the first has measured
                taken.append(seconds("native" if name == "native" else "auto", cache))
    for name, taken in times.items():
        print(f"{name:18} {statistics.median(taken):6.2f} s")


if __name__ == "__main__":
    main()
