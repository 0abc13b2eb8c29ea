"""Whole runs in Python and by sparcl-device, from the same untrained file: accuracy and executed multiply-adds.

`python experiments/device_equal.py [--program FILE] [--seeds N]` prints a table in Markdown; docs/device.md holds one.
Both sides learn seq-digits, task by task, under SparCL at .90 with the settings of `sparcl run seq-digits`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import cast

import torch
from results import student

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.cost.flops import Ledger
from sparcl.methods import METHODS
from sparcl.methods.settings import published
from sparcl.nn import build
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import SparCL
from sparcl.streams import Stream, seq_digits

PROGRAM = Path(__file__).parents[1] / "build/program/native/sparcl-device"
SPARSITY, BUFFER, EPOCHS, WIDTH, BATCH = 0.90, 200, 10, 32, 32


def made(method: str, stream: Stream, seed: int) -> Learner:
    """Untrained, as `sparcl run` makes it."""
    torch.manual_seed(seed)
    arguments = published(stream.name, method, BUFFER)
    lr = arguments.pop("lr")
    del arguments["source"]
    model = build("convnet", 10, stream.input_shape, WIDTH)
    host = METHODS[method](BUFFER, **arguments)
    sparsifier = SparCL(SPARSITY, first_mask="random")
    return Learner(model, host, sparsifier, lr=lr, epochs=EPOCHS, batch_size=BATCH, seed=seed)


def both(method: str, stream: Stream, seed: int, program: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """(Python's, the program's) accuracy over all classes in percent, multiply-adds, and masks that differ."""
    learner = made(method, stream, seed)
    file, samples = folder / "model.sparcl", folder / "samples.sparcl"
    names, first = stream.class_names, stream[0]
    export_device(learner, file, transform=first.transform, input_shape=stream.input_shape, classes=names)
    ledger = Ledger(learner.model, learner.sparsifier.layers, stream.input_shape)
    learner.observers.append(ledger)
    for task in stream:
        learner.learn(task)
        pack(task.train, names, samples)
        subprocess.run([program, "learn", file, samples, "--threads", "1"], check=True, capture_output=True)
    parts, sizes = learner.evaluate().class_il, [len(task.test) for task in stream if task.test is not None]
    assert parts is not None
    mean = sum(p * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)
    test = stream.merged()[0].test
    assert test is not None
    pack(test, names, samples)
    said = subprocess.run([program, "evaluate", file, samples], check=True, capture_output=True, text=True).stdout
    model = model_file.read(file)
    masks = {layer.name: layer.index for layer in learner.sparsifier.layers}
    differ = sum(
        len(set(index.tolist()) - set(model.state["layers"][name]["index"].tolist())) for name, index in masks.items()
    )
    counted = cast(int, model.device["cost"]["executed"])
    return {
        "accuracy": (mean, float(said.splitlines()[-1].split()[1])),
        "executed": (ledger.executed / 2, counted / 2),
        "masks": (float(sum(map(len, masks.values()))), float(differ)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be 2 or more: a difference needs a spread")
    torch.set_num_threads(1)
    print("| method | seed | accuracy, Python | device | multiply-adds, Python | device | active weights that differ |")
    print("|---|---|---|---|---|---|---|")
    for method in ("er", "derpp"):
        differences, stream = [], seq_digits()
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = both(method, stream, seed, given.program, Path(folder))
            (python, device), (ours, theirs), (active, differ) = found.values()
            differences.append(device - python)
            print(
                f"| {method} | {seed} | {python:.2f} | {device:.2f} | {ours:,.0f} | {theirs:,.0f}"
                f" | {differ:.0f} of {active:.0f} |",
                flush=True,
            )
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        t = mean / (spread / math.sqrt(len(differences))) if spread else 0.0
        print(
            f"\n{method}: device less Python {mean:+.2f} ± {spread:.2f} points, p = {student(t, given.seeds - 1):.2f}\n"
        )


if __name__ == "__main__":
    main()
