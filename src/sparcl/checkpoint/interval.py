"""When a checkpoint is due: every so many steps, or every so many seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparcl.errors import ConfigError

USUAL = "60s"


@dataclass(frozen=True)
class Interval:
    """A number of steps or of seconds; exactly one of them is given."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | int | None) -> Interval:
        """`500` (or the int) is steps, `60s` is seconds, and what None stands for.

        Raises:
            ConfigError: anything else, or zero.
        """
        text = USUAL if text is None else text
        match = re.fullmatch(r"([0-9]{1,12})|([0-9]{1,9}(?:\.[0-9]{1,6})?)s", str(text))
        steps, seconds = (None, None) if match is None else match.groups()
        if not float(steps or seconds or 0) > 0:
            raise ConfigError(f"checkpoint interval {text!r} is not allowed; use steps (500) or seconds (60s), above 0")
        return cls(steps=int(steps)) if steps else cls(seconds=float(seconds or 0))


class Checkpointer:
    """An observer, the last one, that saves when it is due: at the end of a step, so that the state is consistent.

    Args:
        every: the interval.
        save: writes a checkpoint.
    """

    def __init__(self, every: Interval, save: Callable[[], object]) -> None:
        self.every, self.save = every, save
        self._restart()

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end":
            self.steps += 1
            if self.due():
                self.now()

    def due(self) -> bool:
        """Whether the interval has passed since the last checkpoint."""
        if self.every.steps is not None:
            return self.steps >= self.every.steps
        return time.monotonic() - self.since >= (self.every.seconds or 0.0)

    def now(self) -> None:
        """Save, and count anew."""
        self.save()
        self._restart()

    def _restart(self) -> None:
        self.steps, self.since = 0, time.monotonic()
