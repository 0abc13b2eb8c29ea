"""Weights or their average? Both answers of the same runs, each a pair; Student's t test of the differences.

    python experiments/averaged.py measure runs/equal-time --data CIFAR10   # from the last checkpoints of finished runs
    python experiments/averaged.py                                          # what was measured

A run with `average` has trained as one without would have, and its checkpoint holds both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from student import paired, shown

from sparcl import Learner
from sparcl.run import build
from sparcl.run.experiment import Experiment
from sparcl.run.toml import read_toml

RECORDS = Path(__file__).parent / "results" / "averaged" / "pairs.json"
SCENARIOS = ("class_il", "task_il")


def measure(runs: Path, data: Path) -> None:
    """Write both answers of every finished run under `runs` that kept an average."""
    known = {pair["run"]: pair for pair in json.loads(RECORDS.read_text())} if RECORDS.exists() else {}
    torch.set_num_threads(1)
    for run in sorted(runs.iterdir()):
        if run.name in known or not (run / "checkpoint").exists() or not (run / "result.json").exists():
            continue
        experiment = Experiment.from_dict({**read_toml(run / "config.toml"), "data": str(data)}, run.name)
        if experiment.average is None:
            continue
        learner, tasks = Learner.load(run / "checkpoint"), list(build.stream(experiment))
        averaged = learner.evaluate(tasks)
        learner.average = None
        trained = learner.evaluate(tasks)
        pair: dict[str, Any] = {"run": run.name, "row": row_of(experiment), "seed": experiment.seed}
        for name in SCENARIOS:
            pair[name] = [round(statistics.mean(getattr(found, name)), 4) for found in (trained, averaged)]
        known[run.name] = pair
        print(pair, flush=True)
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    RECORDS.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def row_of(experiment: Experiment) -> str:
    """Method, sparsifier and steps."""
    sparse = "" if experiment.sparsity is None else f" {experiment.sparsity:g}"
    more = ", without DGM" if experiment.gradient_sparsity == 0 else ""
    more += ", without TDM" if experiment.importance == "none" else ""
    return f"{experiment.method} {experiment.sparsifier}{sparse}{more}, {experiment.steps} steps a task"


def table() -> None:
    """Mean difference of each row, and of all."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for pair in json.loads(RECORDS.read_text()):
        rows[pair["row"]].append(pair)
        rows["all"].append(pair)
    rows["all"] = rows.pop("all")  # last
    for row, pairs in rows.items():
        told = []
        for name in SCENARIOS:
            gains = [averaged - trained for trained, averaged in (pair[name] for pair in pairs)]
            mean = statistics.mean(gains)
            told.append(f"{name} {mean:+.2f}" + (f" ({shown(paired(gains))})" if len(gains) > 1 else ""))
        print(f"{row}: {', '.join(told)}; {len(pairs)} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure",))
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    if asked.what is None:
        table()
    elif asked.runs is None or asked.data is None:
        parser.error("measure needs the folder of the runs and --data")
    else:
        measure(asked.runs, asked.data)


if __name__ == "__main__":
    main()
