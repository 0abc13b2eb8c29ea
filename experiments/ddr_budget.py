"""Does removing samples pay where time is given, not epochs? `python experiments/ddr_budget.py OUT [--data CIFAR10]`.

SparCL-DER++ .90 at one number of steps a task, five seeds: no removal, the published removal, and four that ask for
less. With steps given, a sample that leaves makes room for more passes over the others. Runs that are done are skipped,
so that it can be stopped; each is a line of OUT. Without --data embedded digits are learned (110 steps a task, a minute
a variant), with it Split CIFAR-10 as in equal-time.toml, at a budget of one dense epoch (four minutes a run).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import lines
import torch
from student import compared
from torch import Tensor

from sparcl.run import build
from sparcl.run.experiment import Experiment
from sparcl.sparsity.ddr import DDR
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Moments

RARE = 4
"""A removed sample is drawn in one of so many epochs."""
SEEDS = range(5)


class Rare(DDR):
    """What is removed is drawn more rarely instead of never, and comes back when it is found forgotten."""

    def keep(self, ids: Tensor) -> Tensor:
        drawn = torch.randint(RARE, (len(self.kept),), generator=self.generator) == 0
        return ids[(self.kept | drawn)[ids]]

    def after_forward(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        super().after_forward(ids, logits, labels)
        forgotten = ids[(logits.detach().argmax(dim=1) != labels).cpu()]
        self.removed -= int((~self.kept[forgotten]).sum())
        self.kept[forgotten] = True


class Learned(DDR):
    """Of the share that may leave, only samples that were not wrong once since the last removal."""

    def remove(self) -> None:
        self._settle()
        self.seen &= self.count == 0
        super().remove()


class Later(DDR):
    """The published rule in the second half of a task."""

    def attach(self, *args: Any, **options: Any) -> DDR:
        self.moments = Moments((0.5, 0.6, 0.7, 0.8))
        return super().attach(*args, **options)


class RareLearned(Rare, Learned):
    """Both: only what is learned leaves, is drawn more rarely, and comes back."""


VARIANTS: dict[str, tuple[type[DDR], float]] = {
    "none": (DDR, 0.0),
    "published": (DDR, 0.3),
    "rare": (Rare, 0.3),
    "learned": (Learned, 0.3),
    "later": (Later, 0.3),
    "rare and learned": (RareLearned, 0.3),
}
DIGITS = {"stream": "seq-digits", "sparsity": 0.9, "steps": 110, "threads": 1}
CIFAR = {
    "stream": "seq-cifar10",
    "sparsity": 0.9,
    "steps": 313,
    "threads": 1,
    "width": 32,
    "limit_per_class": 1000,
    "limit_test_per_class": 200,
}


def run(settings: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """One run, its accuracy and what was removed in its last task."""
    torch.set_num_threads(1)
    experiment = Experiment.from_dict({**settings, "seed": seed}, name).resolve()
    stream = build.stream(experiment)
    learner = build.learner(experiment, stream)
    kind, share = VARIANTS[name]
    sparsifier = learner.sparsifier
    assert isinstance(sparsifier, SparCL)
    told = sparsifier.ddr.notify
    sparsifier.ddr = kind(share)
    sparsifier.ddr.notify = told
    sparsifier.ddr.attach(learner.model, learner.optimizer, seed)
    for task in stream:
        learner.learn(task)
    accuracy = learner.evaluate()
    return {
        "variant": name,
        "seed": seed,
        "class_il": statistics.mean(accuracy.class_il),
        "removed": int(sparsifier.ddr.removed),
    }


def main() -> None:
    """Parse, run what is missing, print means and p of the difference from no removal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data")
    asked = parser.parse_args()
    settings = DIGITS if asked.data is None else {**CIFAR, "data": asked.data}
    rows = lines.read(asked.out)
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for name in VARIANTS:
            if (name, seed) not in done:
                rows.append(run(settings, name, seed))
                lines.add(asked.out, rows[-1])
    of = {name: [row["class_il"] for row in rows if row["variant"] == name] for name in VARIANTS}
    for name, values in of.items():
        difference, p = compared(values, of["none"])
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        print(f"{name:17} {mean:5.1f} ± {deviation:4.1f}  {difference:+5.1f} (p = {p:.2f})")


if __name__ == "__main__":
    main()
