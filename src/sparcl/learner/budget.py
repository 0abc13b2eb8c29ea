"""How long a task is trained: so many passes over it, so many steps, or so many seconds.

Every schedule (TDM's moments, DDR's, RigL's, the progress bar) follows the share of the budget that is spent, whichever
kind it is. What a budget of seconds came to is its *pace*: for each half percent of the budget, after how many steps it
was spent. A Learner that is given a pace goes through the same steps with the same shares, and so to the same bits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.position import Position

KINDS = ("epochs", "steps", "seconds")

UNITS = 200
"""Parts that a budget of seconds is told in: a schedule sees it grow by half a percent at a time."""

MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Budget:
    """So many `kind` for each task."""

    kind: str
    amount: float

    @classmethod
    def of(
        cls, epochs: float | None, steps: float | None, seconds: float | None, pace: Sequence[Sequence[int]] = ()
    ) -> Budget:
        """The one that is given; one epoch where none is.

        Raises:
            ConfigError: two are given, one is outside its range, or a pace is none or beside another than seconds.
        """
        given = {k: v for k, v in zip(KINDS, (epochs, steps, seconds), strict=True) if v is not None}
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are both given; a budget is one of: {', '.join(KINDS)}")
        kind, amount = next(iter(given.items()), ("epochs", 1))
        if isinstance(amount, Integral) and not isinstance(amount, bool):
            amount = int(amount)  # NumPy's is no number of a checkpoint's
        check_amount(kind, amount)
        amount = float(amount) if not isinstance(amount, int) else amount
        check_pace(pace)
        if pace and kind != "seconds":
            raise ConfigError(f"a pace is what a budget of seconds came to, and has no effect beside {kind}")
        return cls(kind, amount)

    def spent(self, position: Position) -> float:
        """Share of the budget that is spent when the step at `position` begins, 0 to 1."""
        if self.kind == "epochs":
            return (position.epoch + position.step / max(position.planned_steps, 1)) / self.amount
        if self.kind == "steps":
            return position.done / self.amount
        return bisect_right(position.pace, position.done) / UNITS

    def schedule(self, position: Position) -> float | None:
        """`spent` as a sparsifier is told it: in the middle of the step; None for epochs, which it counts itself."""
        if self.kind == "epochs":
            return None
        return (position.done + 0.5) / self.amount if self.kind == "steps" else self.spent(position)

    def over(self, position: Position) -> bool:
        """Whether nothing is left of it."""
        if self.kind == "epochs":
            return position.epoch >= self.amount
        if self.kind == "steps":
            return position.done >= self.amount
        return position.done > 0 and len(position.pace) == UNITS and position.done >= position.pace[-1]

    def note(self, position: Position, seconds: float) -> None:
        """A step was made, and took so long with all that belongs to it.

        Raises:
            ConfigError: the first step alone took more than twice the budget.
        """
        position.done += 1
        position.seconds += seconds
        if self.kind != "seconds" or position.replayed:
            return
        if position.done == 1 and seconds > 2 * self.amount:
            raise ConfigError(
                f"a budget of {self.amount:g} seconds is too little: one step takes {seconds:.3g}; use {seconds:.1g}"
                " or more"
            )
        units = min(UNITS, int(position.seconds / self.amount * UNITS))
        position.pace += [position.done] * (units - len(position.pace))

    def describe(self, position: Position) -> str:
        """Where it stands, for people: `epoch 2/5`, `step 120/600`, `42/120 s`."""
        if self.kind == "epochs":
            return f"epoch {position.epoch + 1}/{self.amount}"
        if self.kind == "steps":
            return f"step {position.done}/{self.amount}"
        return f"{self.spent(position) * self.amount:.0f}/{self.amount:g} s"


def check_amount(kind: str, amount: float) -> None:
    """Raise ConfigError unless a task can be trained for so many `kind`."""
    if kind == "seconds":
        if not isinstance(amount, Real) or not 0 < amount < math.inf:
            raise ConfigError(f"seconds {amount!r:.40} is not allowed; use a number above 0")
    elif not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
        raise ConfigError(f"{kind} {amount} is not allowed; use 1 or more, a whole number")
    elif amount > MOST_STEPS:
        raise ConfigError(f"{kind} {amount} is not allowed; use {MOST_STEPS} or less")


def check_pace(pace: Sequence[Sequence[int]], error: type[ConfigError | CheckpointError] = ConfigError) -> None:
    """Raise `error` unless it could have been recorded."""
    for steps in pace:
        rising = all(isinstance(a, int) and a <= b for a, b in zip(steps, [*steps[1:], MOST_STEPS], strict=True))
        if len(steps) != UNITS or not rising or steps[0] < 1:
            raise error(f"a pace is {UNITS} rising numbers of steps for each task, from 1; another was given")
