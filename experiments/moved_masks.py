"""Do masks that move need their weights scaled? `python experiments/moved_masks.py OUT`.

A network without any normalisation, seq-digits, DER++ with 100 samples, .90, three and ten epochs: dense, a mask that
stays, and masks that move (SparCL's, SET's, RigL's): as they are, and with what stays active scaled at each move, so
that the sum of squares of the whole layer, or of each output, is what it was before. What a move leaves of the layer's
sum and of the variance of its outputs (64 samples of the task) is noted, before any scaling. Runs that are done are
skipped, so that it can be stopped; each is a line of OUT.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lines
import torch
from student import compared
from torch import Tensor, nn

from sparcl import Learner
from sparcl.methods import DERpp
from sparcl.sparsity import SET, RigL, SparCL, Sparsifier, Static
from sparcl.streams import Task, seq_digits

SPARSITY = 0.9
SEEDS = range(5)
KINDS: dict[str, Callable[[], Sparsifier | None]] = {
    "dense": lambda: None,
    "static": lambda: Static(SPARSITY, first_mask="random"),
    "sparcl": lambda: SparCL(SPARSITY, first_mask="random"),
    "set": lambda: SET(SPARSITY, first_mask="random"),
    "rigl": lambda: RigL(SPARSITY, first_mask="random"),
}
MOVING = ("sparcl", "set", "rigl")
SCALINGS = ("none", "layer", "output")
VARIANTS = [("dense", "none"), ("static", "none"), *((kind, scaling) for kind in MOVING for scaling in SCALINGS)]


def plain(seed: int) -> nn.Sequential:
    """Without any normalisation."""
    torch.manual_seed(seed)
    convolutions = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))


class Watch:
    """Stands around every call that takes weights out of a mask: notes what is left, and scales it."""

    def __init__(self, learner: Learner, scaling: str) -> None:
        self.learner, self.scaling = learner, scaling
        self.squares: list[float] = []
        self.variance: list[float] = []
        self.inputs = torch.empty(0)
        sparsifier = learner.sparsifier
        mover: Any = sparsifier.tdm if isinstance(sparsifier, SparCL) else sparsifier
        self.layers = {la.name: la.parameter for la in mover.layers if la.name in mover.scaled}
        for name in ("update", "end_task"):
            setattr(mover, name, self.around(getattr(mover, name)))

    def begin_task(self, task: Task) -> None:
        self.inputs = task.transform.test(task.train.inputs[:64])

    @torch.no_grad()
    def outputs(self) -> dict[str, float]:
        x, found = self.inputs, {}
        for name, module in self.learner.model.named_children():
            x = module(x)
            found[name] = float(x.var())
        return found

    @torch.no_grad()
    def rows(self) -> dict[str, Tensor]:
        """Of each output, [O]."""
        return {name: p.double().square().flatten(1).sum(1) for name, p in self.layers.items()}

    def around(self, move: Callable[[], None]) -> Callable[[], None]:
        def moved() -> None:
            variance, before = self.outputs(), self.rows()
            move()
            new_variance, after = self.outputs(), self.rows()
            for name, parameter in self.layers.items():
                if torch.equal(before[name], after[name]):
                    continue
                self.squares.append(float(after[name].sum() / before[name].sum()))
                self.variance.append(new_variance[name] / variance[name])
                self.scale(parameter, before[name], after[name])

        return moved

    @torch.no_grad()
    def scale(self, parameter: nn.Parameter, before: Tensor, after: Tensor) -> None:
        if self.scaling == "layer":
            parameter.mul_(float((before.sum() / after.sum()).sqrt()))
        elif self.scaling == "output":
            factors = torch.where(after > 0, before / after.clamp(min=1e-30), 1.0).sqrt()
            parameter.mul_(factors.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1)))


def run(kind: str, scaling: str, epochs: int, seed: int) -> dict[str, Any]:
    """One run: its accuracy, and the share of a layer's sum of squares and output variance that its moves left."""
    torch.set_num_threads(1)
    learner = Learner(plain(seed), DERpp(100), KINDS[kind](), lr=0.05, epochs=epochs, seed=seed, backend="reference")
    watch = Watch(learner, scaling) if kind in MOVING else None
    for task in seq_digits():
        if watch is not None:
            watch.begin_task(task)
        learner.learn(task)
    accuracy = learner.evaluate().class_il
    assert accuracy is not None
    row: dict[str, Any] = {"kind": kind, "scaling": scaling, "epochs": epochs, "seed": seed}
    row["class_il"] = statistics.mean(accuracy)
    for name in ("squares", "variance") if watch is not None else ():
        values = getattr(watch, name)
        row |= {"moves": len(values), f"{name}_mean": statistics.mean(values), f"{name}_min": min(values)}
    return row


def table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds; p of the difference from the same without scaling, Welch's t test."""
    for epochs in (3, 10):
        of: dict[tuple[str, str], list[float]] = {}
        for kind, scaling in VARIANTS:
            own = [r for r in rows if (r["kind"], r["scaling"], r["epochs"]) == (kind, scaling, epochs)]
            values = of[kind, scaling] = [r["class_il"] for r in own]
            if len(values) < 2:
                continue
            line = f"{epochs:2} epochs {kind:7} {scaling:7}"
            line += f" {statistics.mean(values):5.1f} ± {statistics.stdev(values):4.1f}"
            if scaling != "none":
                difference, p = compared(values, of[kind, "none"])
                line += f"  {difference:+5.1f} (p = {p:.2f})"
            if kind in MOVING:
                kept = {n: statistics.mean(r[f"{n}_mean"] for r in own) for n in ("squares", "variance")}
                least = {n: min(r[f"{n}_min"] for r in own) for n in kept}
                line += "".join(f"  {n} {kept[n]:.3f} (least {least[n]:.3f})" for n in kept)
            print(line)


def main() -> None:
    """Parse, run what is missing, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rows = lines.read(out)
    done = {(row["kind"], row["scaling"], row["epochs"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for epochs in (3, 10):
            for kind, scaling in VARIANTS:
                if (kind, scaling, epochs, seed) not in done:
                    rows.append(run(kind, scaling, epochs, seed))
                    lines.add(out, rows[-1])
    table(rows)


if __name__ == "__main__":
    main()
