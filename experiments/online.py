"""A stream without borders against the same samples in tasks: the records under results/online, and their table.

    python experiments/online.py seq-digits
    python experiments/online.py seq-cifar10 --data CIFAR10
    python experiments/online.py --table

One pass in batches of 10, replay of 10, buffer 200, the published learning rates, one thread. `borders`: `learn` of one
task after another. `stream`: `observe` of the same samples, tasks in the same order but unsaid. `blurry`: `observe` of
the stream with blurred borders (a tenth of the samples of half of the classes elsewhere). No run removes samples. What
is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import sparcl
from sparcl import Anytime, Learner, methods, nn, online, streams
from sparcl.learner.online import accuracy_on
from sparcl.methods.settings import published

RECORDS = Path(__file__).parent / "results" / "online"
BATCH, BUFFER = 10, 200
EVERY = {"seq-digits": 100, "seq-cifar10": 200}
SEEDS = {"seq-digits": 5, "seq-cifar10": 2}
OFTEN = {"seq-digits": 4, "seq-cifar10": 5}
"""Steps between two mask updates of a stream that has as many as the tasks have."""

Row = dict[str, Any]


def rows(name: str) -> Iterator[Row]:
    """Every run of a stream, one seed after the other."""
    protocols = ("borders", "stream", "blurry") if name == "seq-digits" else ("borders", "stream")
    for seed in range(SEEDS[name]):
        for method in ("er", "derpp"):
            for protocol in protocols:
                yield {"method": method, "sparsifier": "dense", "interval": None, "protocol": protocol, "seed": seed}
                intervals = [None] if protocol == "borders" else [100, OFTEN[name]]
                for interval in intervals:
                    sparse = {"method": method, "sparsifier": "sparcl .90", "interval": interval}
                    yield {**sparse, "protocol": protocol, "seed": seed}


def opened(name: str, data: Path | None) -> streams.Stream:
    """Its tasks have a whole number of batches, so that both sides make the same steps."""
    if name == "seq-digits":
        return streams.seq_digits(limit_per_class=140)
    return streams.load(name, data, limit_per_class=200).limit_test(50)


def learner(name: str, stream: streams.Stream, row: Row) -> Learner:
    settings = published(name, row["method"], BUFFER)
    settings.pop("source")
    lr, weight_decay = settings.pop("lr"), settings.pop("weight_decay", 0.0)
    torch.manual_seed(row["seed"])
    kind, width = ("convnet", 32) if name == "seq-digits" else ("resnet18", 16)
    sparsifier = None
    if row["sparsifier"] != "dense":
        interval = {} if row["interval"] is None else {"interval": row["interval"]}
        sparsifier = sparcl.SparCL(0.90, samples=0.0, first_mask="random", **interval)
    return Learner(
        nn.build(kind, stream.n_classes, stream.input_shape, width),
        methods.find(row["method"])(BUFFER, **settings),
        sparsifier,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=BATCH,
        epochs=1,
        seed=row["seed"],
        input_shape=stream.input_shape,
    )


def with_borders(made: Learner, stream: streams.Stream, every: int) -> Anytime:
    """As `online`, by `learn`."""
    measured: list[tuple[int, float]] = []
    before = 0  # samples of the tasks that are over

    def measure(event: str, figures: dict[str, Any]) -> None:
        del figures
        position = made.position
        if event != "step.end" or position is None or position.order is None:
            return
        samples = before + position.cursor
        if samples % every == 0 and samples < total:
            seen = set(made.labels[position.order[: position.cursor]].tolist())
            earlier = {k for task in stream[: position.task] for k in task.classes}
            measured.append((samples, accuracy_on(made, stream, seen | earlier)))

    total = sum(len(task.train) for task in stream)
    made.observers.append(measure)
    for task in stream:
        made.learn(task)
        before += len(task.train)
    measured.append((total, accuracy_on(made, stream, set(range(stream.n_classes)))))
    samples, accuracy = zip(*measured, strict=True)
    return Anytime(samples, accuracy)


def run(name: str, data: Path | None) -> None:
    file, done = RECORDS / f"{name}.json", []
    if file.exists():
        done = json.loads(file.read_text())
    stream = opened(name, data)
    finished = [
        {key: record[key] for key in ("method", "sparsifier", "interval", "protocol", "seed")} for record in done
    ]
    for row in rows(name):
        if row in finished:
            continue
        made = learner(name, stream, row)
        if row["protocol"] == "borders":
            found = with_borders(made, stream, EVERY[name])
        else:
            used = streams.blurry(stream, seed=row["seed"]) if row["protocol"] == "blurry" else stream
            found = online(made, used, every=EVERY[name], batch_size=BATCH, seed=row["seed"])
        print(row, found, flush=True)
        curve = [[n, round(a, 3)] for n, a in zip(found.samples, found.accuracy, strict=True)]
        done.append({**row, "steps": made.steps, "average": found.average, "final": found.final, "curve": curve})
        RECORDS.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(record) for record in done)
        file.write_text(f"[\n{lines}\n]\n")


def cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table() -> str:
    """Mean ± standard deviation over the seeds, percent."""
    lines = [
        "| stream | method | sparsifier | protocol | mask update every | n | steps | anytime (A_AUC) | final |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    for file in sorted(RECORDS.glob("*.json"), reverse=True):
        records = json.loads(file.read_text())
        keys = ("method", "sparsifier", "protocol", "interval")
        for key in dict.fromkeys(tuple(record[k] for k in keys) for record in records):
            group = [record for record in records if tuple(record[k] for k in keys) == key]
            method, sparsifier, protocol, interval = key
            moved = "–" if sparsifier == "dense" else "tenth of a task" if interval is None else f"{interval} steps"
            figures = [cell([record[name] for record in group]) for name in ("average", "final")]
            (steps,) = {record["steps"] for record in group}
            cells = [file.stem, method, sparsifier, protocol, moved, len(group), steps, *figures]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="observe against learn, in one pass")
    parser.add_argument("stream", nargs="?", choices=list(EVERY))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stream:
        run(arguments.stream, arguments.data)
    if arguments.table:
        print(table())


if __name__ == "__main__":
    main()
