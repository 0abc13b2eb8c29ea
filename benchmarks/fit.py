"""Does what `sparcl.fit` picks stay within its budget? Picks, then trains with it, under the same limit of the system.

    python benchmarks/fit.py --memory 450MB --width 32

The process gets the budget as its limit of writable memory (`ulimit -d`) before it imports PyTorch. It says what was
picked, and its peak resident memory after `--steps` steps on each of two tasks of noise.
"""

from __future__ import annotations

import argparse
import resource

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memory", default="450MB", help="a whole number and kB, MB or GB")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    limit = int(asked.memory[:-2]) * UNITS[asked.memory[-2:]]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    import numpy as np
    import torch

    import sparcl
    from sparcl import methods, nn, streams
    from sparcl.cost.memory import peak_rss_bytes

    torch.set_num_threads(asked.threads)
    shape, classes = (3, 32, 32), 10
    try:
        found = sparcl.fit(asked.model, shape, classes, asked.memory, width=asked.width, samples=asked.samples)
    except sparcl.SparclError as error:
        print(f"refused: {error}")
        return
    print(found)
    learner = sparcl.Learner(
        nn.build(asked.model, classes, shape, asked.width),
        methods.DERpp(found.buffer_size, buffer_storage=found.buffer_storage or "raw"),
        sparcl.SparCL(found.sparsity),
        batch_size=found.batch_size,
        micro_batch=found.micro_batch,
        steps=asked.steps,
        input_shape=shape,
    )
    images = np.random.default_rng(0).integers(0, 256, (2 * asked.samples, *shape), dtype=np.uint8)
    labels = np.arange(2 * asked.samples) * classes // (2 * asked.samples)
    for task in streams.from_arrays(images, labels, classes_per_task=classes // 2):
        learner.learn(task)
    peak = peak_rss_bytes() or 0
    print(f"peak {peak / 1e6:.1f} MB of {limit / 1e6:.1f} MB: {'within' if peak <= limit else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
