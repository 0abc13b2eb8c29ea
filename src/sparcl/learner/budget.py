"""How long a task is trained: so many passes over it, so many steps, or so many seconds.

Every schedule (TDM's moments, DDR's, RigL's, the progress bar) follows the share of the budget that is spent, whichever
kind it is. What a budget of seconds came to is its *pace*: for each half percent of the budget, after how many steps it
was spent. A Learner that is given a pace goes through the same steps with the same shares, and so to the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Self

from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.position import Position
from sparcl.sparsity.sparsifier import ROUNDING
from sparcl.whole import is_whole

KINDS = ("epochs", "steps", "seconds")

UNITS = 200
"""Parts that a budget of seconds is told in: a schedule sees it grow by half a percent at a time."""

MOST_STEPS = 2**31 - 1
MOST_SECONDS = 1e9
"""Some thirty years."""


@dataclass(frozen=True)
class Budget:
    """So many `kind` for each task.

    Attributes:
        paced: whether a pace is recorded: of seconds, and of a task in their place, which a device was asked for.
    """

    kind: str
    amount: float
    paced: bool = False

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
        return cls(kind, amount, paced=kind == "seconds")

    @classmethod
    def under_way(cls, settings: Mapping[str, float], position: Position | None) -> Self:
        """That of the task at `position`, which may be another than the Learner's own: a device was asked for it.

        Raises:
            CheckpointError: the position's is none.
        """
        told = settings if position is None or position.budget is None else saved_budget(position.budget)
        ((kind, amount),) = told.items()
        return cls(kind, amount, paced="seconds" in settings)

    def begin(self, index: int, paces: Sequence[Sequence[int]]) -> Position:
        """Where a task begins; the pace of it, where one is given, is gone through again."""
        pace = [*paces[index]] if index < len(paces) else []
        return Position(index, pace=pace, replayed=bool(pace), budget={self.kind: self.amount})

    def paces(self, position: Position) -> list[list[int]]:
        """That of a task that is over, where one was recorded, as a list of one."""
        recorded = self.paced and not position.replayed
        return [position.pace + [position.done] * (UNITS - len(position.pace))] if recorded else []

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
            ConfigError: the first step of all alone took more than twice the budget.
        """
        position.done += 1
        position.seconds += seconds
        if not self.paced or position.replayed:
            return
        first = position.task == 0 and position.done == 1  # later it is known what a step takes: one may be held up
        if self.kind == "seconds" and first and seconds > 2 * self.amount:
            raise ConfigError(
                f"a budget of {self.amount:g} seconds is too little: one step takes {seconds:.3g}; use {seconds:.1g}"
                " or more"
            )
        units = min(UNITS, int(self._behind_step(position) * UNITS + ROUNDING))
        position.pace += [position.done] * (units - len(position.pace))

    def _behind_step(self, position: Position) -> float:
        """Share that is spent behind a step that was counted, while `position.step` is still its own."""
        if self.kind == "seconds":
            return position.seconds / self.amount
        return self.spent(replace(position, step=position.step + 1))

    def describe(self, position: Position) -> str:
        """Where it stands, for people: `epoch 2/5`, `step 120/600`, `42/120 s`."""
        if self.kind == "epochs":
            return f"epoch {position.epoch + 1}/{self.amount}"
        if self.kind == "steps":
            return f"step {position.done}/{self.amount}"
        return f"{self.spent(position) * self.amount:.0f}/{self.amount:g} s"


def saved_budget(saved: Any) -> dict[str, float]:
    """A budget of a checkpoint, checked.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(saved, dict) or len(saved) != 1 or not saved.keys() <= set(KINDS):
        raise CheckpointError(f"the budget in the checkpoint is not one of: {', '.join(KINDS)}")
    ((kind, amount),) = saved.items()
    if not isinstance(amount, int | float):
        raise CheckpointError(f"the budget in the checkpoint is {amount!r:.40}")
    try:
        check_amount(kind, amount)
    except ConfigError as error:
        raise CheckpointError(f"the budget in the checkpoint is not allowed: {error}") from None
    return {kind: amount}


def check_amount(kind: str, amount: float) -> None:
    """Raise ConfigError unless a task can be trained for so many `kind`."""
    if kind == "seconds":
        check_seconds(kind, amount)
    elif not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
        raise ConfigError(f"{kind} {amount!s:.40} is not allowed; use 1 or more, a whole number")
    elif amount > MOST_STEPS:
        raise ConfigError(f"{kind} {amount!s:.40} is not allowed; use {MOST_STEPS} or less")


def check_seconds(label: str, seconds: float) -> None:
    """Raise ConfigError unless a task can be trained for so long; `label` is what it is called there."""
    if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds <= MOST_SECONDS:
        raise ConfigError(f"{label} {seconds!r:.40} is not allowed; use a number above 0, at most {MOST_SECONDS:g}")


def check_pace(pace: Sequence[Sequence[int]], error: type[ConfigError | CheckpointError] = ConfigError) -> None:
    """Raise `error` unless it could have been recorded."""
    told = f"a pace is {UNITS} rising numbers of steps for each task, from 1; another was given"
    if not isinstance(pace, Sequence) or not all(isinstance(steps, Sequence) for steps in pace):
        raise error(told)
    for steps in pace:
        rising = all(is_whole(a) and a <= b for a, b in zip(steps, [*steps[1:], MOST_STEPS], strict=False))
        if len(steps) != UNITS or not rising:
            raise error(told)
