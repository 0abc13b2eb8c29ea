"""Of the settings that may give way to a memory budget: in which order they do, and what each choice takes.

A peak is tried in this process (`run/trial.py`) or expected from trials: from small batches up, and none is tried that
is expected not to fit, so that it may be done under the very limit that it is for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sparcl.errors import ConfigError
from sparcl.run import trial
from sparcl.streams.task import Stream

MARGIN = 0.02
"""Of the peak, kept free: two runs of the same settings differ by less."""

MOST_SPARSE = 0.95
LEAST_BATCH = 2
"""BatchNorm has no statistics of one sample."""

FIRST, SECOND = 4, (16, 8, 6, 5)
"""Batches that are tried before the one that is asked for, the first and the largest other that cannot take too much:
from both it is known what a sample takes."""

FREE = ("buffer_storage", "sparsity", "batch_size", "buffer_size")
"""What may be given up where the user has not named it, the first first."""
UNIT = 10**6


@dataclass(frozen=True)
class Choice:
    """What is trained with. `packed`: the buffer holds samples in another form than they come in."""

    batch: int
    sparsity: float | None
    buffer: int | None
    packed: bool = False


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
        self.trials: dict[float | None, dict[int, trial.Trial]] = {}
        self.failed: dict[float | None, int] = {}
        self.before: int | None = None

    def tried(self, batch: int, sparsity: float | None) -> bool:
        """Try it, unless it was; whether memory sufficed."""
        known = self.trials.setdefault(sparsity, {})
        if batch in known or batch >= self.failed.get(sparsity, math.inf):
            return batch in known
        found = trial.run(self.make, self.stream.tasks[: trial.TASKS], batch, sparsity)
        if found is None:
            self.failed[sparsity] = batch
            return False
        self.before = found.before if self.before is None else self.before
        known[batch] = found
        return True

    def a_sample(self) -> float:
        """Bytes that one more sample of a batch takes, from the two largest batches that were tried.

        Of one alone: as if all that its training took were its samples', which is too much.
        """
        known = self._most_tried()
        if len(known) > 1:
            small, large = sorted(known)[-2:]
            return self._slope(small, large)
        return max((max(0, t.training - t.before) / batch for batch, t in known.items()), default=0.0)

    def _most_tried(self) -> dict[int, trial.Trial]:
        """Of one sparsity, by batch."""
        return max(self.trials.values(), key=len, default={})

    def _slope(self, small: int, large: int) -> float:
        known = self._most_tried()
        return max(0.0, (known[large].training - known[small].training) / (large - small))

    def _steps_peak(self, batch: int, sparsity: float | None) -> float:
        """Of training: along the line through the batches that were tried; other sparsities run beside it."""
        own, known = self.trials[sparsity], self._most_tried()
        if batch in own:
            return own[batch].training
        line = sorted(known)
        if batch in known:
            on_line: float = known[batch].training
        else:
            below = max([b for b in line if b < batch], default=line[0])
            above = min([b for b in line if b > batch and b > below], default=below)
            slope = self._slope(below, above) if above > below else self.a_sample()
            on_line = known[below].training + slope * (batch - below)
        both = max([b for b in own if b in known], default=None)
        return on_line + (own[both].training - known[both].training if both is not None else 0)

    def peak(self, choice: Choice) -> float:
        """Bytes at the peak; infinite where memory ran out."""
        if not self.trials.get(choice.sparsity):
            self.tried(min(FIRST, choice.batch), choice.sparsity)
        known = self.trials[choice.sparsity]
        if not known or choice.batch >= self.failed.get(choice.sparsity, math.inf):
            return math.inf
        found = known[min(known, key=lambda batch: abs(batch - choice.batch))]
        training = self._steps_peak(choice.batch, choice.sparsity)
        return max(training, found.beside) + self.buffer(choice) - found.buffer + self.to_come

    def buffer(self, choice: Choice) -> int:
        """Bytes of a full buffer."""
        known = self.trials[choice.sparsity]
        sample = known[max(known)].sample
        if not sample:
            return 0
        most = sum(len(task.train) for task in self.stream.tasks) * sample
        if self.buffer_bytes is not None:
            return min(self.buffer_bytes, most)
        return min((choice.buffer or 0) * (sample + (self.packing if choice.packed else 0)), most)

    def parts(self, choice: Choice) -> dict[str, int]:
        """The peak by what it is for; `import` takes what is left over where the process gave something back."""
        known = self.trials[choice.sparsity]
        found = known[min(known, key=lambda batch: abs(batch - choice.batch))]
        assert self.before is not None
        held = trial.data_bytes(self.stream) if not self.to_come else 0
        parts = {"import": self.before - held, "data": held + self.to_come, "weights": found.weights}
        parts["buffer"] = self.buffer(choice)
        rest = int(self.peak(choice)) - sum(parts.values())
        parts["import"] += min(0, rest)
        parts["activations"] = min(max(0, rest), int(self.a_sample() * choice.batch))
        parts["workspace"] = max(0, rest) - parts["activations"]
        return parts


def choices(asked: Choice, free: Collection[str], least_buffer: int) -> Iterator[Choice]:
    """From as asked to the smallest, each giving up as little as possible; `free` are names of `FREE`."""
    storages = [False, True] if "buffer_storage" in free else [False]
    sparsities = [asked.sparsity]
    if "sparsity" in free and asked.sparsity is not None and asked.sparsity < MOST_SPARSE:
        sparsities.append(MOST_SPARSE)
    batches = list(_halves(asked.batch, LEAST_BATCH)) if "batch_size" in free else [asked.batch]
    buffers: list[int | None] = [asked.buffer]
    if "buffer_size" in free and asked.buffer is not None:
        buffers = list(_halves(asked.buffer, least_buffer))
    for buffer in buffers:
        for batch in batches:
            for sparsity in sparsities:
                for packed in storages:
                    yield Choice(batch, sparsity, buffer, packed)


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
    first = min(FIRST, asked.batch)
    if costs.tried(first, asked.sparsity):
        small = Choice(first, asked.sparsity, asked.buffer)
        hopeless = costs.peak(small) > budget  # then it is tried to tell what would do
        seconds = [b for b in SECOND if first < b <= asked.batch]
        for batch in seconds:
            if hopeless or costs.peak(Choice(batch, asked.sparsity, asked.buffer)) <= budget:
                costs.tried(batch, asked.sparsity)
                break
    smallest = asked
    for choice in choices(asked, free, least_buffer):
        if costs.peak(choice) * (1 + MARGIN) <= budget:
            costs.tried(choice.batch, choice.sparsity)
            if costs.peak(choice) * (1 + MARGIN) <= budget:
                return choice
        smallest = choice if costs.peak(choice) <= costs.peak(smallest) else smallest
    costs.tried(smallest.batch, smallest.sparsity)
    raise ConfigError(_too_little(costs, asked, smallest, budget))


def _too_little(costs: Costs, asked: Choice, smallest: Choice, budget: int) -> str:
    told = f"max memory {megabytes(budget)} MB is too little"
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
    told += [] if choice.sparsity is None else [f"sparsity {choice.sparsity:g}"]
    told += [] if choice.buffer is None else [f"buffer size {choice.buffer}"]
    return ", ".join(told)


def megabytes(count: float) -> str:
    """Without the unit."""
    return f"{count / UNIT:,.1f}"
