"""Of the settings that may give way to a memory budget: in which order they do, and what each choice takes.

A peak is tried in this process (`run/trial.py`) or expected from trials: from small batches up, and none is tried that
is expected not to fit, so that it may be done under the very limit that it is for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

from sparcl.errors import ConfigError
from sparcl.run import trial
from sparcl.streams.task import Stream

MARGIN = 0.02
"""Of the peak, kept free: two runs of the same settings differ by less."""

MOST_SPARSE = 0.95
LEAST_BATCH = 2
"""BatchNorm has no statistics of one sample."""

FIRST, SECOND = 4, (16, 8, 6, 5)
"""Samples at a time that are tried before those that are asked for, the first and the largest other that cannot take
too much: from both it is known what a sample takes."""

SMALL_BATCH = 8
"""Down to here a smaller batch is the better use of the same seconds (docs/on-device.md); then passes are parted."""

FREE = ("buffer_storage", "sparsity", "batch_size", "micro_batch", "buffer_size")
"""What may be given up where the user has not named it, the first first."""
UNIT = 10**6


Kind = tuple[float | None, bool]
"""Sparsity, and whether passes are made in micro-batches: trials of one kind lie on a line."""


@dataclass(frozen=True)
class Choice:
    """What is trained with. `packed`: the buffer holds samples in another form than they come in."""

    batch: int
    sparsity: float | None
    buffer: int | None
    packed: bool = False
    micro: int | None = None

    @property
    def rows(self) -> int:
        """Samples of a batch that pass at a time."""
        return self.micro or self.batch

    @property
    def kind(self) -> Kind:
        return self.sparsity, self.micro is not None

    def with_rows(self, rows: int) -> Choice:
        """The same kind, with so many samples at a time."""
        if self.micro is None:
            return dataclasses.replace(self, batch=rows)
        return dataclasses.replace(self, micro=rows)


class Costs:
    """Peaks of choices: tried, or expected from those that were.

    Args:
        make: see `trial.Make`.
        stream: what is learned.
        to_come: bytes of data that are not resident yet.
        buffer_bytes: of a buffer that is given bytes, in place of a number of samples.
        packing: a packed sample's bytes less a raw one's.
    """

    def __init__(
        self, make: trial.Make, stream: Stream, to_come: int = 0, buffer_bytes: int | None = None, packing: int = 0
    ) -> None:
        self.make, self.stream, self.to_come = make, stream, to_come
        self.buffer_bytes, self.packing = buffer_bytes, packing
        self.trials: dict[Kind, dict[int, trial.Trial]] = {}
        self.failed: dict[Kind, int] = {}
        self.before: int | None = None

    def tried(self, choice: Choice) -> bool:
        """Try it, unless it was; whether memory sufficed."""
        known, rows = self.trials.setdefault(choice.kind, {}), choice.rows
        if rows in known or rows >= self.failed.get(choice.kind, math.inf):
            return rows in known
        found = self.attempt(choice)
        if found is None:
            self.failed[choice.kind] = rows
            return False
        self.before = found.before if self.before is None else self.before
        known[rows] = found
        return True

    def attempt(self, choice: Choice) -> trial.Trial | None:
        """Of a learner as it would be; None where memory ran out."""
        make = partial(self.make, choice.batch, choice.sparsity, choice.micro)
        return trial.run(make, self.stream.tasks[: trial.TASKS], choice.batch)

    def a_sample(self, parts: bool) -> float:
        """Bytes that one more sample at a time takes, from the two largest numbers of them that were tried.

        Of one alone: as if all that its training took were its samples', which is too much.
        """
        known = self._most_tried(parts)
        if len(known) > 1:
            small, large = sorted(known)[-2:]
            return self._slope(known, small, large)
        return max((max(0, t.training - t.before) / rows for rows, t in known.items()), default=0.0)

    def _most_tried(self, parts: bool) -> dict[int, trial.Trial]:
        """Of one sparsity, by samples at a time."""
        return max((known for (_, own), known in self.trials.items() if own is parts), key=len, default={})

    @staticmethod
    def _slope(known: dict[int, trial.Trial], small: int, large: int) -> float:
        return max(0.0, (known[large].training - known[small].training) / (large - small))

    def _steps_peak(self, rows: int, kind: Kind) -> float:
        """Of training: along the line through what was tried; other sparsities run beside it."""
        own, known = self.trials[kind], self._most_tried(kind[1])
        if rows in own:
            return own[rows].training
        line = sorted(known)
        if rows in known:
            on_line: float = known[rows].training
        else:
            below = max([b for b in line if b < rows], default=line[0])
            above = min([b for b in line if b > rows and b > below], default=below)
            slope = self._slope(known, below, above) if above > below else self.a_sample(kind[1])
            on_line = known[below].training + slope * (rows - below)
        both = max([b for b in own if b in known], default=None)
        return on_line + (own[both].training - known[both].training if both is not None else 0)

    def peak(self, choice: Choice) -> float:
        """Bytes at the peak; infinite where memory ran out."""
        if not self.trials.get(choice.kind):
            self.tried(choice.with_rows(min(FIRST, choice.rows)))
        if not self.trials[choice.kind] or choice.rows >= self.failed.get(choice.kind, math.inf):
            return math.inf
        found = self._nearest(choice)
        training = self._steps_peak(choice.rows, choice.kind)
        return max(training, found.beside) + self.buffer(choice) - found.buffer + self.to_come

    def _nearest(self, choice: Choice) -> trial.Trial:
        known = self.trials[choice.kind]
        return known[min(known, key=lambda rows: abs(rows - choice.rows))]

    def buffer(self, choice: Choice) -> int:
        """Bytes of a full buffer."""
        known = self.trials[choice.kind]
        sample = known[max(known)].sample
        if not sample:
            return 0
        most = sum(len(task.train) for task in self.stream.tasks) * sample
        if self.buffer_bytes is not None:
            return min(self.buffer_bytes, most)
        return min((choice.buffer or 0) * (sample + (self.packing if choice.packed else 0)), most)

    def parts(self, choice: Choice) -> dict[str, int]:
        """The peak by what it is for; `import` takes what is left over where the process gave something back."""
        found = self._nearest(choice)
        assert self.before is not None
        held = trial.data_bytes(self.stream) if not self.to_come else 0
        parts = {"import": self.before - held, "data": held + self.to_come, "weights": found.weights}
        parts["buffer"] = self.buffer(choice)
        rest = int(self.peak(choice)) - sum(parts.values())
        parts["import"] += min(0, rest)
        parts["activations"] = min(max(0, rest), int(self.a_sample(choice.kind[1]) * choice.rows))
        parts["workspace"] = max(0, rest) - parts["activations"]
        return parts


def choices(asked: Choice, free: Collection[str], least_buffer: int) -> Iterator[Choice]:
    """From as asked to the smallest, each giving up as little as possible; `free` are names of `FREE`."""
    storages = [False, True] if "buffer_storage" in free else [False]
    sparsities = [asked.sparsity]
    if "sparsity" in free and asked.sparsity is not None and asked.sparsity < MOST_SPARSE:
        sparsities.append(MOST_SPARSE)
    sizes = _sizes(asked, free)
    buffers: list[int | None] = [asked.buffer]
    if "buffer_size" in free and asked.buffer is not None:
        buffers = list(_halves(asked.buffer, least_buffer))
    for buffer in buffers:
        for batch, micro in sizes:
            for sparsity in sparsities:
                for packed in storages:
                    yield Choice(batch, sparsity, buffer, packed, micro)


def _sizes(asked: Choice, free: Collection[str]) -> list[tuple[int, int | None]]:
    """Batch and micro-batch: a small batch, then micro-batches of it, then what is smaller still."""
    batches = list(_halves(asked.batch, LEAST_BATCH)) if "batch_size" in free else [asked.batch]
    if "micro_batch" not in free:
        return [(batch, asked.micro and min(asked.micro, batch)) for batch in batches]
    usual = [batch for batch in batches if batch >= SMALL_BATCH or batch == asked.batch]
    parted: list[tuple[int, int | None]] = [(usual[-1], micro) for micro in _halves(usual[-1], LEAST_BATCH)]
    return [*((batch, None) for batch in usual), *parted, *((batch, LEAST_BATCH) for batch in batches[len(usual) :])]


def _halves(number: int, least: int) -> Iterator[int]:
    yield number
    while number > least:
        number = max(number // 2, least)
        yield number


def choose(costs: Costs, asked: Choice, free: Collection[str], budget: int, least_buffer: int) -> Choice:
    """The first choice that fits, tried.

    Raises:
        ConfigError: none does; it says what would.
    """
    smallest, begun = asked, set()
    for choice in choices(asked, free, least_buffer):
        if choice.kind[1] not in begun:
            begun.add(choice.kind[1])
            _begin_line(costs, choice, budget, last="micro_batch" not in free or choice.kind[1])
        if costs.peak(choice) * (1 + MARGIN) <= budget:
            costs.tried(choice)
            if costs.peak(choice) * (1 + MARGIN) <= budget:
                return choice
        smallest = choice if costs.peak(choice) <= costs.peak(smallest) else smallest
    costs.tried(smallest)
    _begin_line(costs, asked, budget, last=True)  # for what all as asked would take
    raise ConfigError(_too_little(costs, asked, smallest, budget))


def _begin_line(costs: Costs, choice: Choice, budget: int, *, last: bool) -> None:
    """Try two small numbers of samples at a time, so that it is known what one takes; `last`: no smaller kind comes."""
    first = choice.with_rows(min(FIRST, choice.rows))
    if not costs.tried(first):
        return
    hopeless = last and costs.peak(first) > budget  # then it is tried to tell what would do
    for rows in (b for b in SECOND if first.rows < b <= choice.rows):
        if hopeless or costs.peak(choice.with_rows(rows)) <= budget:
            costs.tried(choice.with_rows(rows))
            return


def _too_little(costs: Costs, asked: Choice, smallest: Choice, budget: int) -> str:
    told = f"max memory {f'{megabytes(budget)} MB' if budget >= UNIT // 10 else f'of {budget} B'} is too little"
    if math.isinf(least := costs.peak(smallest)):
        return f"{told}: memory ran out with {described(smallest)}; without the system's limit it is said what would do"
    form = "this" if smallest == asked else f"even {described(smallest)}"
    imports = megabytes(costs.parts(smallest)["import"])
    whole = "" if smallest == asked else f", all as asked about {_enough(costs.peak(asked))}"
    return f"{told}: {form} takes {megabytes(least)} MB, {imports} of them imports; {_enough(least)} would do{whole}"


def _enough(peak: float) -> str:
    """A budget that such a peak fits into, next time as well."""
    return "more than there is" if math.isinf(peak) else f"{math.ceil(peak * (1 + MARGIN) * 1.01 / UNIT)}MB"


def described(choice: Choice) -> str:
    """In words."""
    told = [f"batch size {choice.batch}"]
    told += [] if choice.micro is None else [f"micro-batches of {choice.micro}"]
    told += [] if choice.sparsity is None else [f"sparsity {choice.sparsity:g}"]
    told += [] if choice.buffer is None else [f"buffer size {choice.buffer}"]
    return ", ".join(told)


def megabytes(count: float) -> str:
    """Without the unit."""
    return f"{count / UNIT:,.1f}"
