"""Which samples the buffer keeps: every one seen with equal probability, or as many of each class as it can.

Legend: B capacity, n filled, N batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError

MOST_CLASSES = 1 << 40


class Policy(ABC):
    """Decides, sample by sample, who gets which place."""

    name: ClassVar[str]

    @abstractmethod
    def draw(
        self, labels: Tensor, held: Callable[[], list[int]], seen: int, capacity: int, generator: torch.Generator
    ) -> dict[int, int]:
        """Place -> sample of a batch; of two samples that draw one place the later stays, as if they came one by one.

        Args:
            labels: of the batch, int64 [N].
            held: gives the labels of the samples that are kept, [n], by place.
            seen: samples offered before this batch.
            capacity: B.
            generator: the only source of randomness.
        """

    def leaves(self, held: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
        """Places of `count` samples that go because there is less room now: any, with equal probability."""
        return torch.randperm(len(held), generator=generator)[:count].tolist()

    def state(self) -> dict[str, Any]:
        """JSON values, for a checkpoint."""
        return {}

    keys: ClassVar[tuple[str, ...]] = ()
    """Of `state`."""

    def load(self, state: Any) -> None:
        """Go on from `state`; CheckpointError where it is not well formed."""
        del state


class Reservoir(Policy):
    """Each sample seen so far with equal probability (Vitter, 1985)."""

    name = "reservoir"

    def draw(
        self, labels: Tensor, held: Callable[[], list[int]], seen: int, capacity: int, generator: torch.Generator
    ) -> dict[int, int]:
        del held
        draws = torch.rand(len(labels), dtype=torch.float64, generator=generator).tolist()
        places: dict[int, int] = {}
        for sample, draw in enumerate(draws):
            place = seen if seen < capacity else int(draw * (seen + 1))
            if place < capacity:
                places[place] = sample
            seen += 1
        return places


class ClassBalanced(Policy):
    """Class-balancing reservoir sampling (Chrysakis & Moens, ICML 2020, algorithm 1), for unequal classes.

    While there is room everything is kept. Then a sample of a class that has never been the largest takes the place of
    any sample of the largest class (at random, also among equally large ones); one of a class that has takes, with
    probability kept of that class / seen of that class, the place of any of its own.
    """

    name = "balanced"
    keys = ("classes",)

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        """Samples seen of each class."""
        self.full: set[int] = set()
        """Classes that are or have been the largest since the buffer was full."""

    def draw(
        self, labels: Tensor, held: Callable[[], list[int]], seen: int, capacity: int, generator: torch.Generator
    ) -> dict[int, int]:
        del seen
        draws = torch.rand(len(labels), 2, dtype=torch.float64, generator=generator).tolist()
        kept = held()
        of_class: dict[int, list[int]] = {}
        for place, label in enumerate(kept):
            of_class.setdefault(label, []).append(place)
        filled = len(kept)
        places: dict[int, int] = {}
        for sample, (label, (chance, which)) in enumerate(zip(labels.tolist(), draws, strict=True)):
            self.seen[label] = self.seen.get(label, 0) + 1
            own = of_class.setdefault(label, [])
            if filled < capacity:
                place, filled = filled, filled + 1
                own.append(place)
            else:
                found = self._place(label, of_class, chance, which)
                if found is None:
                    continue
                place = found
            places[place] = sample
        return places

    def _place(self, label: int, of_class: dict[int, list[int]], chance: float, which: float) -> int | None:
        """The place that a sample of a class takes in a full buffer, and `of_class` as it is then; None: none."""
        most = max(map(len, of_class.values()))
        largest = sorted(k for k, its in of_class.items() if len(its) == most)
        self.full.update(largest)
        own = of_class[label]
        if label in self.full:
            return own[int(which * len(own))] if chance * self.seen[label] < len(own) else None
        candidates = [(k, i) for k in largest for i in range(most)]
        loser, i = candidates[int(which * len(candidates))]
        place = of_class[loser].pop(i)
        own.append(place)
        return place

    def leaves(self, held: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
        """Samples of the largest class go first, one by one."""
        of_class: dict[int, list[int]] = {}
        for place, label in enumerate(held):
            of_class.setdefault(label, []).append(place)
        gone = []
        for draw in torch.rand(count, dtype=torch.float64, generator=generator).tolist():
            most = max(map(len, of_class.values()))
            candidates = [(k, i) for k in sorted(of_class) for i in range(most) if len(of_class[k]) == most]
            loser, i = candidates[int(draw * len(candidates))]
            gone.append(of_class[loser].pop(i))
        return gone

    def state(self) -> dict[str, Any]:
        return {"classes": [[label, self.seen[label], label in self.full] for label in sorted(self.seen)]}

    def load(self, state: Any) -> None:
        rows, what = state["classes"], "what the buffer has seen of a class"
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise CheckpointError(f"{what} in the checkpoint is not well formed")
        labels = [checks.integer(row[0], what, 0, MOST_CLASSES) for row in rows]
        if labels != sorted(set(labels)) or not all(type(row[2]) is bool for row in rows):
            raise CheckpointError(f"{what} in the checkpoint is not well formed")
        self.seen = {label: checks.integer(row[1], what, 1) for label, row in zip(labels, rows, strict=True)}
        self.full = {row[0] for row in rows if row[2]}


POLICIES: dict[str, type[Policy]] = {kind.name: kind for kind in (Reservoir, ClassBalanced)}


def make_policy(name: str) -> Policy:
    """A policy by its name; ConfigError where it is unknown."""
    if name not in POLICIES:
        raise ConfigError(f"unknown buffer policy {name!r}; allowed: {', '.join(POLICIES)}")
    return POLICIES[name]()
