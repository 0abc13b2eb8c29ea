"""The optimizer that a Learner is given or makes: its rates, and what of it is refused before any work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import nn

from sparcl import named
from sparcl.errors import LARGEST, ConfigError
from sparcl.recorded import refuse

LR = 0.03
"""Published, for DER++ on CIFAR-10."""


def rates(lr: float | None, weight_decay: float | None, *, of_ours: bool) -> tuple[float, float]:
    """Learning rate and weight decay, defaults filled in, as Python's own numbers.

    Args:
        of_ours: whether they are of the Learner's own optimizer; one that is given has its own.

    Raises:
        ConfigError: out of range, or without effect.
    """
    for label, given in (("lr", lr), ("weight_decay", weight_decay)):
        if given is not None and not of_ours:
            raise ConfigError(
                f"{label}={given!r:.40} has no effect beside optimizer: give it to that, as in optimizer=lambda p:"
                f" torch.optim.SGD(p, {label}=...)"
            )
    lr, weight_decay = LR if lr is None else lr, 0.0 if weight_decay is None else weight_decay
    if not isinstance(lr, Real) or not 0 < lr <= LARGEST:
        raise ConfigError(f"learning rate {lr!r:.40} is not allowed; use a number above 0, at most {LARGEST:.2g}")
    if not isinstance(weight_decay, Real) or not 0 <= weight_decay <= LARGEST:
        raise ConfigError(f"weight decay {weight_decay!r:.40} is not allowed; use 0 or more, at most {LARGEST:.2g}")
    return float(lr), float(weight_decay)


def made(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], parameters: list[nn.Parameter]) -> Any:
    """The optimizer that a function of the user's, or ours, makes of the parameters.

    Raises:
        ConfigError: it fails, makes no optimizer or one with settings that are nonsense, or a step of that computes the
            loss itself, as often as it likes: here it is one pass.
    """
    optimizer = named.call("optimizer", make, parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer makes a {type(optimizer).__name__}; a torch.optim.Optimizer is needed, as of lambda p:"
            " torch.optim.SGD(p, lr=0.03)"
        )
    # of the class: a scheduler wraps the instance's own
    asked = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in asked):
        raise ConfigError(
            f"optimizer {type(optimizer).__name__} is not allowed: its step() needs a closure; use one whose step()"
            " needs no arguments, as SGD and AdamW"
        )
    check_settings(optimizer)
    return optimizer


SHARE = (lambda value: 0 <= value < 1, "0 to less than 1")
AMOUNT = (lambda value: value >= 0, "0 or more")
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "weight_decay", "eps"), AMOUNT),
    **dict.fromkeys(("momentum", "dampening", "betas"), SHARE),
}
"""What PyTorch's optimizers compute with; some of it they do not check, and nothing of what a single group has."""


def check_settings(optimizer: torch.optim.Optimizer) -> None:
    """Refuse settings of one of PyTorch's optimizers that are out of range, or without effect."""
    kind = type(optimizer).__name__
    if not type(optimizer).__module__.startswith("torch.optim."):
        return
    for group in optimizer.param_groups:
        for name, value in group.items():
            fits, words = (
                SHARE if (kind, name) == ("RMSprop", "alpha") else RANGES.get(name, (math.isfinite, "a number"))
            )
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Real) and not (math.isfinite(one) and fits(float(one))):
                    refuse(f"{name} {one:g} of optimizer {kind} is not allowed; use {words}")
        momentum, dampening = group.get("momentum"), group.get("dampening", 0)
        if momentum == 0 and dampening != 0:
            refuse(f"dampening {dampening:g} of optimizer {kind} has no effect without momentum: leave it out")
        if group.get("nesterov") and (momentum == 0 or dampening != 0):
            refuse(f"nesterov of optimizer {kind} needs momentum, and no dampening: give it, or leave it out")


def step(optimizer: torch.optim.Optimizer) -> None:
    """Weights move; ConfigError where the optimizer cannot do that, with what it says."""
    named.call(f"optimizer {type(optimizer).__name__}", optimizer.step)


def check_trained(optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError if everything that the optimizer holds is frozen."""
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError("nothing is trained: requires_grad is False of every parameter that the optimizer holds")
