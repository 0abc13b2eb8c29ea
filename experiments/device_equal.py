"""Whole runs in Python and by sparcl-device, from the same untrained file: accuracy and executed multiply-adds.

    python experiments/device_equal.py [--program FILE] [--seeds N]
    python experiments/device_equal.py seq-cifar10 --data CIFAR10

Both sides learn the stream, task by task, under SparCL at .90 with the settings of `sparcl run`; of CIFAR-10 only so
many images a class. Prints a table in Markdown; docs/device.md holds both. `--records FILE` keeps each run there as it
ends, and those that are there already are not made again: give the same command to go on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from student import student

from sparcl import Learner, streams
from sparcl.checkpoint import disk, model_file
from sparcl.cost.flops import Ledger
from sparcl.methods import METHODS
from sparcl.methods.settings import published
from sparcl.nn import build
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import SparCL
from sparcl.streams import Stream

PROGRAM = Path(__file__).parents[1] / "build/program/native/sparcl-device"
SPARSITY, BUFFER, EPOCHS, BATCH = 0.90, 200, 10, 32

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A stream's network, and how many images of a class both sides get (None: all)."""

    model: str
    width: int
    limit_per_class: int | None = None


JOBS = {"seq-digits": Job("convnet", 32), "seq-cifar10": Job("resnet18", 16, 200)}


def made(method: str, stream: Stream, seed: int) -> Learner:
    """Untrained, as `sparcl run` makes it."""
    torch.manual_seed(seed)
    arguments = published(stream.name, method, BUFFER)
    lr = arguments.pop("lr")
    del arguments["source"]
    job = JOBS[stream.name]
    model = build(job.model, stream.n_classes, stream.input_shape, job.width)
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


def rows(name: str, methods: Sequence[str], seeds: int) -> list[Record]:
    """What tells one run from another, the runs in the order in which they are made."""
    same = {"stream": name, **asdict(JOBS[name]), "epochs": EPOCHS, "sparsity": SPARSITY, "buffer": BUFFER}
    return [{**same, "method": method, "seed": seed} for method in methods for seed in range(seeds)]


def collect(
    name: str, data: Path | None, program: Path, wanted: Sequence[Record], records: Path | None
) -> list[Record]:
    """The records of the wanted runs; those that are not in the file yet are made, and added to it."""
    done: list[Record] = json.loads(records.read_text()) if records is not None and records.exists() else []

    def of(row: Record) -> Record | None:
        return next((record for record in done if record.items() >= row.items()), None)

    if not all(map(of, wanted)):
        stream = streams.load(name, data, limit_per_class=JOBS[name].limit_per_class)
    for row in wanted:
        if of(row) is None:
            with tempfile.TemporaryDirectory() as folder:
                found = both(row["method"], stream, row["seed"], program, Path(folder))
            done.append({**row, **found})
            if records is not None:
                lines = ",\n".join(json.dumps(record) for record in done)
                disk.write_output(records, [f"[\n{lines}\n]\n".encode()])
        print(line(cast(Record, of(row))), flush=True)
    return [cast(Record, of(row)) for row in wanted]


def line(record: Record) -> str:
    """A run's line of the table."""
    (python, device), (ours, theirs), (active, differ) = (record[key] for key in ("accuracy", "executed", "masks"))
    return (
        f"| {record['method']} | {record['seed']} | {python:.2f} | {device:.2f} | {ours:,.0f} | {theirs:,.0f}"
        f" | {differ:.0f} of {active:.0f} |"
    )


def compared(method: str, records: Sequence[Record]) -> str:
    """Student's t of the differences of the pairs."""
    differences = [device - python for python, device in (r["accuracy"] for r in records if r["method"] == method)]
    mean, spread, p = paired(differences)
    return f"{method}: device less Python {mean:+.2f} ± {spread:.2f} points, p = {p:.2f}"


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and standard deviation of the differences of two or more pairs, and Student's p of the mean."""
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    p = student(mean / (spread / math.sqrt(len(differences))), len(differences) - 1) if spread else float(mean == 0.0)
    return mean, spread, p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", nargs="?", choices=list(JOBS), default="seq-digits")
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder, or an archive")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--methods", nargs="+", choices=["er", "derpp"], default=["er", "derpp"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--records", type=Path, help="runs that are done, a JSON list; made where it is not there")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be 2 or more: a difference needs a spread")
    torch.set_num_threads(1)
    print("| method | seed | accuracy, Python | device | multiply-adds, Python | device | active weights that differ |")
    print("|---|---|---|---|---|---|---|")
    wanted = rows(given.stream, given.methods, given.seeds)
    records = collect(given.stream, given.data, given.program, wanted, given.records)
    print("", *(compared(method, records) for method in given.methods), sep="\n")


if __name__ == "__main__":
    main()
