"""What a run will cost, without training: the ledger is told of a run that does not take place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparcl.cost.flops import Counts, Ledger
from sparcl.cost.probe import Passes, TaskPasses, probe
from sparcl.errors import ConfigError
from sparcl.methods.method import Method
from sparcl.sparsity.collected import Allowance
from sparcl.sparsity.ddr import DDR, REMOVAL_MOMENTS
from sparcl.sparsity.dgm import DGM
from sparcl.sparsity.set import SET
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Moments, Sparsifier
from sparcl.sparsity.static import Static
from sparcl.sparsity.tdm import TDM, update_moments
from sparcl.streams.batches import last, steps

FORESEEABLE: tuple[type[Sparsifier], ...] = (Sparsifier, SparCL, TDM, DGM, DDR, Static, SET)
"""Sparsifiers that a forecast knows the ranking passes of."""


def plan(
    model: nn.Module,
    method: Method,
    sparsifier: Sparsifier,
    samples: Sequence[int],
    input_shape: tuple[int, ...],
    *,
    epochs: int,
    batch_size: int = 32,
    replay_batch_size: int | None = None,
    drop_last: bool | None = None,
) -> dict[str, int]:
    """FLOPs of training on tasks of `samples` training samples each: `executed`, `paper` and `dense` (see `Ledger`).

    Equal to what the run's own ledger counts, but where DDR removes samples in the middle of an epoch (tasks whose
    number of epochs is no multiple of ten): how many of them that epoch has left is a matter of chance; where DDR ranks
    by forgetting and too few samples were ever right; and where a buffer of so many bytes holds less than a batch. The
    objects are used up: make others for training.

    Raises:
        ConfigError: a sparsifier whose passes are not foreseen.
    """
    if type(sparsifier) not in FORESEEABLE:
        allowed = ", ".join(kind.name for kind in FORESEEABLE)
        raise ConfigError(f"there is no forecast for sparsifier {sparsifier.name}; there is for: {allowed}")
    sparsifier.attach(model, torch.optim.SGD(model.parameters(), lr=1.0))
    drop_last = sparsifier.drops_last if drop_last is None else drop_last
    passes = probe(
        method,
        samples,
        epochs=epochs,
        batch_size=batch_size,
        replay_batch_size=replay_batch_size or batch_size,
        drop_last=drop_last,
    )
    forecast = Forecast(model, sparsifier, input_shape, epochs, batch_size, drop_last)
    for index, (count, per_task) in enumerate(zip(samples, passes, strict=True)):
        forecast.task(index, count, per_task)
    return forecast.ledger.totals()


class Forecast:
    """Plays a run's events and passes to a ledger, with the numbers of weights and samples that are planned."""

    def __init__(
        self,
        model: nn.Module,
        sparsifier: Sparsifier,
        input_shape: tuple[int, ...],
        epochs: int,
        batch_size: int,
        drop_last: bool,
    ) -> None:
        self.ledger = Ledger(model, sparsifier.layers, input_shape)
        self.ledger.main.counts = self._counts
        self.epochs, self.batch_size, self.drop_last = epochs, batch_size, drop_last
        self.layers, self.block = sparsifier.layers, sparsifier.pattern.block
        self.tdm, self.dgm, self.ddr = _parts(sparsifier)
        self.by_steps = any(part is not None and part.ranking == "step" for part in (self.tdm, self.dgm))
        self.budget = Allowance()
        self.target = [len(layer.index) // self.block for layer in self.layers]
        self._set_units(self.target)

    def _counts(self) -> Counts:
        """Active and updated weights of each layer, as planned."""
        dgm = self.dgm if self._chosen else None
        return {
            layer.name: (units * self.block, (units - (0 if dgm is None else dgm.resting(units))) * self.block)
            for layer, units in zip(self.layers, self.units, strict=True)
        }

    def _set_units(self, units: list[int]) -> None:
        """The masks move; DGM's choice is void."""
        self.units, self._chosen = units, False
        self.ledger("tdm.update", {})

    def task(self, index: int, samples: int, passes: TaskPasses) -> None:
        """A whole task."""
        self.passes, self.removal = passes, _Removal(self.ddr, samples, self.epochs)
        self.updates, self.iteration, self.steps_made = update_moments(), 0, 0
        self.updates.begin_task(self.epochs)
        self.budget.begin_task()
        self.owed, self.ready = True, False
        self.ledger("task.begin", {})
        self._run(passes.begin)
        if self.tdm is not None and index > 0 and self.tdm.p_inter > 0:
            p = self.tdm.p_inter
            grown = [self.tdm.moved(layer, n, p) for layer, n in zip(self.layers, self.target, strict=True)]
            self._set_units([n + new for n, new in zip(self.target, grown, strict=True)])
        for epoch in range(self.epochs):
            self._epoch(epoch, samples)
        if self.units != self.target:
            self._update_masks()
        self._run(passes.end)
        self.ledger("task.end", {})

    def _epoch(self, epoch: int, samples: int) -> None:
        length, cursor, step = self.removal.kept, 0, 0
        planned, batch, _ = steps(length, self.batch_size, self.drop_last)
        self.updates.begin_epoch(epoch, planned)
        self.removal.begin_epoch(epoch, planned)
        dense_steps, dense_batch, dense_last = steps(samples, self.batch_size, self.drop_last)
        self.ledger(
            "epoch.begin",
            {"steps": planned, "dense_steps": dense_steps, "dense_last": dense_last, "dense_as_long": False},
        )
        while last(length - cursor, batch, self.drop_last):
            asked = self._rank(step)
            length -= self.removal.begin_step(step, cursor, length - cursor)
            if cursor == 0:  # a small task may now be less than the batch that the epoch began with
                batch = min(self.batch_size, length)
            now = last(length - cursor, batch, self.drop_last)
            if not now:
                break  # a removal at this very step left too few
            self.ledger("step.begin", {"samples": now})
            run = self._step_passes(dense_batch, dense_last, now)
            self._run(run)
            if asked and self.budget.allows():
                self._read(run, now)
            self.budget.steps += 1
            self.ledger("step.end", {})
            self.steps_made += 1
            cursor, step = cursor + now, step + 1
        self.removal.end_epoch(cursor)
        self.ledger("epoch.end", {})

    def _step_passes(self, batch: int, last: int, now: int) -> Passes:
        """Those of a step on `now` samples, where a whole step has `batch` and an epoch's last `last`."""
        full, settled, short = self._at(self.passes.steps), self.passes.steps[-1], self.passes.short
        if now == last < batch:
            less = [s - n for (s, _), (n, _) in zip(settled, short, strict=True)]
            return [(samples - gone, grad) for (samples, grad), gone in zip(full, less, strict=False)]
        return [(full[0][0] - (batch - now), full[0][1]), *full[1:]]  # the task's own batch comes first

    def _read(self, passes: Passes, batch: int) -> None:
        """The step's gradients are taken apart: L~'s pass back and, where it has remembered samples, theirs."""
        samples, first = sum(n for n, grad in passes if grad), passes[0][0]
        repeated = first if first > batch else 0
        self.ledger("importance.passed", {"extra": first, "repeated": repeated, "samples": samples})
        self.budget.pay(first + repeated, samples)
        self.ready = self.owed

    def _rank(self, step: int) -> bool:
        """What TDM and DGM compute before a step, and whether they ask for its gradients."""
        if self.by_steps:
            return self._rank_by_steps(step)
        if self.tdm is not None and self.updates.due(step) and self.tdm.changes:
            self._update_masks()
        if self.dgm is None or self.dgm.frozen == 0:
            return False
        stale = not self._chosen and any(self.dgm.resting(units) for units in self.units)
        if self.iteration % self.dgm.interval == 0 or stale:
            self._importance(1)
            self._chosen = True
            self.ledger("dgm.choose", {})
        self.iteration += 1
        return False

    def _rank_by_steps(self, step: int) -> bool:
        asked = False
        if self.tdm is not None and self.tdm.changes:
            if self.updates.due(step):
                self._set_units(self.target)
            near = not self.budget.reads or self.updates.near(step, self.tdm.batches)
            asked = bool(self.tdm.alpha or self.tdm.beta) and near
        if self.dgm is None or self.dgm.frozen == 0:
            return asked
        stale = not self._chosen and any(self.dgm.resting(units) for units in self.units)
        if self.ready or (stale and self.budget.reads):
            self._chosen, self.owed, self.ready = True, self.owed and not self.ready, False
            self.ledger("dgm.choose", {})
        self.iteration += 1
        self.owed = self.owed or self.iteration % self.dgm.interval == 0
        return asked or self.owed

    def _update_masks(self) -> None:
        assert self.tdm is not None
        if (self.tdm.alpha or self.tdm.beta) and not self.by_steps:
            self._importance(self.tdm.batches)
        self._set_units(self.target)

    def _importance(self, batches: int) -> None:
        """The two gradients, each over so many fresh batches."""
        self.ledger("importance.begin", {})
        task = (min(self.batch_size, self.removal.kept), True)
        for _ in range(batches):
            self._run([task, *self._at(self.passes.replays)])
        self.ledger("importance.end", {})

    def _at(self, per_step: list[Passes]) -> Passes:
        """The passes of the step that is next: those of a method settle after a few."""
        return per_step[min(self.steps_made, len(per_step) - 1)]

    def _run(self, passes: Passes) -> None:
        for samples, grad in passes:
            self.ledger.count(samples, grad=grad)


def _parts(sparsifier: Sparsifier) -> tuple[TDM | None, DGM | None, DDR | None]:
    if isinstance(sparsifier, SparCL):
        return sparsifier.tdm, sparsifier.dgm, sparsifier.ddr
    return (
        sparsifier if isinstance(sparsifier, TDM) else None,
        sparsifier if isinstance(sparsifier, DGM) else None,
        sparsifier if isinstance(sparsifier, DDR) else None,
    )


class _Removal:
    """How many samples DDR will have removed, and how many of them the present epoch would still have come to."""

    def __init__(self, ddr: DDR | None, samples: int, epochs: int) -> None:
        self.share = 0.0 if ddr is None else ddr.share
        self.samples = self.kept = samples
        self.moments = Moments(REMOVAL_MOMENTS)
        self.moments.begin_task(epochs)
        self.seen_before = self.seen_from = 0  # samples seen since the last removal, up to and in this epoch

    def begin_epoch(self, epoch: int, steps: int) -> None:
        self.moments.begin_epoch(epoch, steps)

    def begin_step(self, step: int, cursor: int, rest: int) -> int:
        """Samples that leave the `rest` of the epoch, expected."""
        if not self.moments.due(step) or self.share == 0:
            return 0
        total = min(round(self.share * self.samples * self.moments.passed / len(REMOVAL_MOMENTS)), self.samples - 2)
        in_rest = round(rest * min(1.0, self.seen_before / self.kept))  # of the rest, those seen since the last removal
        candidates = in_rest + cursor - self.seen_from
        leave = max(0, min(total - (self.samples - self.kept), candidates))
        self.kept -= leave
        self.seen_before, self.seen_from = 0, cursor
        return round(leave * in_rest / candidates) if leave else 0

    def end_epoch(self, cursor: int) -> None:
        self.seen_before += cursor - self.seen_from
        self.seen_from = 0
