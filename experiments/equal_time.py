"""equal-time.toml from the costs of a step: a budget of seconds becomes so many steps for each row.

    python experiments/equal_time.py costs experiments/results/equal-time/costs-32.json [--width 32]
    python experiments/equal_time.py file

The first measures (`sparcl.run.job`, one thread, all rows in turn, ten minutes; keep the machine quiet) what the file
does not hold yet, the second writes the sweep from what was measured. A budget of 1 is what one epoch of dense DER++
takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparcl.run import job
from sparcl.run.experiment import Experiment

HERE = Path(__file__).parent
COSTS = HERE / "results" / "equal-time"
SAMPLES, BATCH = 2000, 32
A_PASS = SAMPLES // BATCH
BASE = {"stream": "seq-cifar10", "limit_per_class": 1000, "limit_test_per_class": 200, "threads": 1, "drop_last": True}
MAIN = [
    {"method": "derpp", "sparsifier": "dense"},
    {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.9},
    {"method": "derpp", "sparsifier": "static", "sparsity": 0.9},
    {"method": "derpp", "sparsifier": "rigl", "sparsity": 0.9},
]
MORE = [
    {"method": "er", "sparsifier": "dense"},
    {"method": "er", "sparsifier": "sparcl", "sparsity": 0.9},
    {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.95},
    {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.75},
    {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.9, "pattern": "block"},
    {"method": "er-ace", "sparsifier": "dense"},
    {"method": "er-ace", "sparsifier": "sparcl", "sparsity": 0.9},
    {"method": "derpp", "sparsifier": "sparcl", "sparsity": 0.95, "single_head": True},
]
MORE_RIVALS = [
    {"method": "derpp", "sparsifier": "snip", "sparsity": 0.9},
    {"method": "derpp", "sparsifier": "set", "sparsity": 0.9},
]
"""Beside static and RigL, which are among the main rows."""

SINGLE = [{**row, "single_head": True} for row in MAIN[:3]]
"""With the loss of the released code, which static masks may have as well."""

AVERAGED: list[dict[str, Any]] = [{**row, "average": 0.1} for row in MAIN]
"""Answered by an average of the weights over the last tenth of a task; the training is that of the same row without."""

HALVES = [{**MAIN[1], "activations": "bfloat16"}]
"""With as many steps as in float32: what the roundings do to accuracy, not what their tenth of a step buys."""

SMALL = [{**row, "batch_size": 16} for row in MAIN[:3]]
"""Half the batch, replay's too: twice the steps in the same time."""

SMALLER = [{**MAIN[0], "batch_size": 8}]
"""A quarter of the batch for the dense host, whose steps follow it; a sparse step of 8 takes as long as one of 16 where
vectors hold 16 numbers."""

RATES = [{**row, "lr": 0.1} for row in MAIN[:3]]
"""Few steps ask for larger ones: whether the lead over dense is the learning rate's."""

ER_RATES = [{**row, "lr": 0.03} for row in MORE[:2]]
"""ER's published rate is 0.1, DER++'s 0.03: whether a smaller one is what ER's further steps lack."""

PARTS: list[dict[str, Any]] = [
    {**MAIN[1], "gradient_sparsity": 0.0},
    {**MAIN[1], "sample_removal": 0.3},
    {**MAIN[1], "importance": "magnitude"},
    {**MAIN[1], "importance": "none"},
    {**MAIN[1], "first_mask": "magnitude"},
    {**MAIN[1], "ranking": "fresh"},
]
"""What each part is worth, at a budget of 2: SparCL .90 less DGM, with DDR, with magnitude for CWI, less TDM, its first
mask of the largest weights, ranked by passes over fresh batches."""
FREE = (
    "gradient_sparsity",
    "sample_removal",
    "importance",
    "first_mask",
    "single_head",
    "lr",
    "average",
    "activations",
)
"""Settings that leave the cost of a step as it is, within 1 % (activations: that are charged as if they did)."""

CANDIDATE = {**PARTS[0], "average": 0.1}
"""The best of the parts on the seeds 0 to 2, averaged, to be confirmed against averaged rivals on seeds that did not
choose it."""
AVERAGED_PARTS = [CANDIDATE, {**MAIN[1], "importance": "none", "average": 0.1}]
"""SparCL .90 less DGM, and less TDM, averaged: averages move less with a run's last steps than weights do."""
SEEDS, CONFIRMING = range(5), range(10, 15)

BUDGETS = (1, 2, 4, 8)
"""In epochs of dense DER++ a task."""

STAGES: tuple[tuple[int, int, list[dict[str, Any]], tuple[float, ...], range], ...] = (
    (1, 32, MAIN, (1, 2), SEEDS),
    (2, 32, PARTS[-1:], (2,), SEEDS),
    (3, 32, RATES, (1,), range(3)),
    (4, 32, SINGLE, (1,), SEEDS),
    (5, 32, AVERAGED[:3], (1,), SEEDS),
    (6, 32, [CANDIDATE, *AVERAGED[2:]], (2,), CONFIRMING),
    (7, 32, AVERAGED_PARTS, (1,), SEEDS),
    (8, 32, MAIN, (4,), SEEDS),
    (9, 32, PARTS[:-1], (2,), SEEDS),
    (10, 32, HALVES, (1,), SEEDS),
    (11, 32, MORE[:3], (1, 2), SEEDS),
    (12, 32, ER_RATES, (2,), range(3)),
    (12, 32, SMALL, (1, 2), SEEDS),
    (12, 32, SMALLER, (1, 2), range(3)),
    (13, 32, MORE_RIVALS, (1, 2), SEEDS),
    (14, 32, MORE[:3], (4,), SEEDS),
    (15, 32, MORE_RIVALS, (4,), SEEDS),
    (16, 64, [*MAIN, MORE[2]], (1,), range(3)),
    (17, 32, SINGLE, (2, 4), SEEDS),
    (17, 32, MORE[3:], (1, 2, 4), SEEDS),
    (18, 32, MAIN[:3], (8,), range(3)),
    (19, 64, [*MAIN, MORE[2]], (2,), range(3)),
)
"""Stage, width, rows, budgets, seeds."""

ROW = ("method", "sparsifier", "sparsity", "pattern", "single_head", "batch_size")


def measure(path: Path, width: int) -> None:
    """Write what a step of every row costs, and what a mask update and a choice take on top.

    Rows that are in the file stay. Others are measured beside DER++ dense and under SparCL .90, and their times brought
    to the machine that those were measured on by the ratio of the one that is dense, or sparse, as they are.
    """
    known: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    rows_asked = [row for _, of, group, *_ in STAGES if of == width for row in group]
    wanted = {json.dumps(row): row for row in rows_asked if not set(FREE) & set(row)}
    missing = [row for row in wanted.values() if cost_of(row, known) is None]
    if not missing:
        print(f"{path} has every row")
        return
    rows = [*MAIN[:2], *(row for row in missing if row not in MAIN[:2])]
    found = job.measure([_experiment(row, width) for row in rows], 60.0, SAMPLES, print)
    found = [{**row, **cost} for row, cost in zip(rows, found, strict=True)]
    before = [cost_of(row, known) for row in MAIN[:2]]
    ratios = [
        1.0 if cost is None else cost["step_ms"] / now["step_ms"] for cost, now in zip(before, found, strict=False)
    ]
    found = [
        {k: v * ratios[row["sparsifier"] != "dense"] if k.endswith("_ms") else v for k, v in cost.items()}
        for row, cost in zip(rows, found, strict=True)
        if row in missing
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*known, *found], indent=1) + "\n")


def _experiment(row: dict[str, Any], width: int) -> Experiment:
    return Experiment.from_dict({**BASE, "width": width, **row}, "row")


def cost_of(row: dict[str, Any], costs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured of a row; None: it was not."""
    usual: dict[str, Any] = {"sparsity": None, "pattern": "unstructured", "batch_size": BATCH, "ranking": None}
    keys = ("method", "sparsifier", *usual)
    return next((c for c in costs if all(c.get(k) == row.get(k, usual.get(k)) for k in keys)), None)


def steps(row: dict[str, Any], budget: float, costs: list[dict[str, Any]]) -> int | None:
    """Steps of `row` in the time of `budget` dense epochs, by all that was measured of it; None: nothing was."""
    own, dense = cost_of(row, costs), cost_of(MAIN[0], costs)
    assert dense is not None
    return None if own is None else job.steps_within(budget * A_PASS * dense["step_ms"] / 1000, own)


def blocks() -> Iterator[str]:
    """The sweep's blocks: main rows and small budgets first."""
    for stage, width, rows, budgets, seeds in STAGES:
        path = COSTS / f"costs-{width}.json"
        if not path.exists():
            continue
        costs = json.loads(path.read_text())
        for row in rows:
            base = ", ".join(f"{k} = {json.dumps(v)}" for k, v in {**row, "width": width}.items())
            found = [steps(row, b, costs) for b in budgets]
            if None in found:
                continue
            grid = ", ".join(map(str, found))
            told = ", ".join(f"{b:g}" for b in budgets)
            yield (
                f"[[runs]] # budgets of {told} dense epochs\nstage = {stage}\nbase = {{ {base} }}\n"
                f"grid = {{ steps = [{grid}], seed = {list(seeds)} }}\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("costs", "file"))
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--width", type=int, default=32)
    asked = parser.parse_args()
    if asked.what == "costs":
        measure(asked.path or COSTS / f"costs-{asked.width}.json", asked.width)
        return
    head = (HERE / "equal-time.head").read_text()
    base = "\n".join(f"{k} = {json.dumps(v)}" for k, v in BASE.items())
    (HERE / "equal-time.toml").write_text(f"{head}\n[base]\n{base}\n\n" + "\n".join(blocks()))


if __name__ == "__main__":
    main()
