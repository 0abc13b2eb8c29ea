"""How the learning rate goes over a task: a factor for the share of the task's budget that is spent.

The share is that which TDM and DDR follow, whatever the budget's kind, so that a replayed pace gives the same rates.
Between two steps the optimizer holds its own rate: the factor is in it for the step alone.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from sparcl.errors import LARGEST, CheckpointError, ConfigError
from sparcl.learner.average import check_share

Factor = Callable[[float], float]
"""From the share of a task's budget that is spent, 0 to less than 1, to what the learning rate is multiplied by."""

CONSTANT = "constant"
OWN = "a function"
"""What a checkpoint says of a schedule that is the user's own function."""

STEP = re.compile(r"step\(([^()]*)\)")
BY = 0.1
"""What a step multiplies the rate by, unless another factor is given."""
START = 0.01
"""Where a warm-up begins: a factor of 0 would waste the first step."""

FORMS = "constant, cosine, step(SHARE, ...) and step(SHARE, ..., by=FACTOR), with rising shares between 0 and 1"


def parse(name: str) -> Factor:
    """The schedule of a name: `constant`, `cosine` or `step(0.5, 0.75, by=0.1)`.

    Raises:
        ConfigError: it is none of these.
    """
    if name == CONSTANT:
        return lambda _: 1.0
    if name == "cosine":
        return lambda share: 0.5 * (1 + math.cos(math.pi * share))
    try:
        shares, by = _steps(name)
    except ValueError:
        raise ConfigError(f"learning-rate schedule {name!r:.80} is not allowed; use {FORMS}") from None
    return lambda share: by ** sum(share >= at for at in shares)


def _steps(name: str) -> tuple[list[float], float]:
    """The shares at which `step(...)` steps, and its factor; ValueError where there is something else."""
    if (match := STEP.fullmatch(name)) is None:
        raise ValueError(name)
    *words, last = [word.strip() for word in match[1].split(",")]
    given = last.startswith("by=")
    by = float(last.removeprefix("by=")) if given else BY
    shares = [float(word) for word in (words if given else [*words, last])]
    rising = all(a < b for a, b in zip([0.0, *shares], [*shares, 1.0], strict=True))
    if not shares or not rising or not 0 <= by <= LARGEST ** (1 / len(shares)):  # all of the steps together, too
        raise ValueError(name)
    return shares, by


def check_clip(norm: float | None) -> float | None:
    """The norm, as Python's own number; ConfigError unless gradients can be clipped to it."""
    if norm is not None and not (_is_number(norm) and 0 < norm <= LARGEST):
        raise ConfigError(f"clip grad norm {norm!r:.40} is not allowed; use a number above 0, at most {LARGEST:.2g}")
    return None if norm is None else float(norm)


def check_warmup(warmup: float) -> float:
    """The share of a task, as Python's own number; ConfigError unless it is one."""
    if not (_is_number(warmup) and 0 <= warmup < 1):
        raise ConfigError(f"warmup {warmup!r:.40} is not allowed; use a share of a task, 0 to less than 1")
    return float(warmup)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class Rate:
    """What a learning rate is multiplied by: a schedule, and a linear warm-up on top of it.

    Args:
        schedule: a name (see `parse`), or a function of the share spent.
        warmup: share of each task in which the factor rises from a hundredth of the schedule's to all of it.

    Raises:
        ConfigError: an unknown name, a function that gives no number of 0 or more, a share outside 0 to less than 1.
    """

    def __init__(self, schedule: str | Factor | None = None, warmup: float = 0.0) -> None:
        schedule = CONSTANT if schedule is None else schedule
        if not isinstance(schedule, str) and not callable(schedule):
            raise ConfigError(
                f"learning-rate schedule {schedule!r:.40} is not allowed; use {FORMS}, or a function of the share spent"
            )
        warmup = check_warmup(warmup)
        self.name = schedule if isinstance(schedule, str) else OWN
        self.schedule = parse(schedule) if isinstance(schedule, str) else schedule
        self.warmup = warmup
        self.constant = self.name == CONSTANT and not warmup
        if not self.constant:
            for share in (0.0, 0.5):  # a function that gives no numbers is refused at once
                self(share)

    def __call__(self, share: float) -> float:
        """The factor where a share of the budget, 0 to less than 1, is spent (ConfigError where it cannot be one)."""
        factor = self.schedule(share)
        if not _is_number(factor) or not 0 <= factor <= LARGEST:
            raise ConfigError(
                f"the learning-rate schedule gives {factor!r:.40} where {share:.3g} of the budget is spent; a finite"
                " number of 0 or more is needed"
            )
        return factor if share >= self.warmup else factor * (START + (1 - START) * share / self.warmup)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ConfigError if the schedule could not have its effect on an optimizer."""
        if self.constant:
            return
        if isinstance(optimizer, torch.optim.Rprop) or not all("lr" in group for group in optimizer.param_groups):
            kind = type(optimizer).__name__
            raise ConfigError(f"a learning-rate schedule has no effect on {kind}, whose steps follow no rate")

    @contextlib.contextmanager
    def applied(self, optimizer: torch.optim.Optimizer, share: float) -> Iterator[None]:
        """In here the optimizer's rates are multiplied by the factor."""
        if self.constant:
            yield
            return
        factor, own = self(share), [group["lr"] for group in optimizer.param_groups]
        try:
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * factor
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate


def clip(optimizer: torch.optim.Optimizer, norm: float | None) -> None:
    """Scale the gradients of all that the optimizer moves so that their norm, taken together, is at most `norm`."""
    if norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)


USUAL: dict[str, Any] = {"lr_schedule": CONSTANT, "warmup": 0.0, "clip_grad_norm": None, "average": None}
"""Settings of a Learner that a checkpoint names only where they are others."""


def of_checkpoint(saved: Mapping[str, Any], schedule: str | Factor | None) -> dict[str, Any]:
    """Those of a checkpoint, checked, for a Learner that is given `schedule`, a function of the user's own or None.

    Raises:
        CheckpointError: they are not allowed, or a function of the user's own is missing.
    """
    settings = {name: saved.get(name, usual) for name, usual in USUAL.items()}
    if settings["lr_schedule"] == OWN and schedule is None:
        raise CheckpointError(
            "the checkpoint's learning-rate schedule is a function of the user's own: pass"
            " Learner.load(..., lr_schedule=)"
        )
    try:
        if settings["lr_schedule"] != OWN:
            Rate(settings["lr_schedule"], settings["warmup"])
        check_warmup(settings["warmup"])
        check_clip(settings["clip_grad_norm"])
        check_share(settings["average"])
    except (ConfigError, OverflowError, TypeError) as error:
        raise CheckpointError(f"the settings in the checkpoint are not allowed: {error}") from None
    return settings if schedule is None else {**settings, "lr_schedule": schedule}
