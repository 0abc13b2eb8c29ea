"""The optimizer of an experiment: SGD (published), Adam or AdamW by name, or one that the user's own callable makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparcl import named
from sparcl.errors import LARGEST, ConfigError, one_line
from sparcl.learner.assembly import MakeOptimizer

if TYPE_CHECKING:
    from sparcl.run.experiment import Experiment


@dataclass(frozen=True)
class Kind:
    """An optimizer by name: its class, the options that it takes as numbers, and where it starts without any.

    `lr` None: the published one, which is SGD's. Those of Adam and AdamW are PyTorch's own.
    """

    made: type[torch.optim.Optimizer]
    options: tuple[str, ...]
    lr: float | None
    weight_decay: float | None


ADAMS = ("beta1", "beta2", "eps", "amsgrad")
OPTIMIZERS = {
    "sgd": Kind(torch.optim.SGD, ("dampening", "nesterov"), None, None),
    "adam": Kind(torch.optim.Adam, ADAMS, 0.001, 0.0),
    "adamw": Kind(torch.optim.AdamW, ADAMS, 0.001, 0.01),
}
USUAL = "sgd"
FLAGS = ("nesterov", "amsgrad")
SHARES = ("beta1", "beta2")
MOMENTUM = "use 0 to less than 1"


def check(name: str | None, momentum: float | None, options: Mapping[str, float]) -> None:
    """Refuse options that an optimizer does not have; a momentum that diverges, where a run begins (`effect`).

    Raises:
        ConfigError: an unknown name or option, or a value that the optimizer refuses.
    """
    name = name or USUAL
    if named.is_own(name):
        named.check_form("optimizer", name)
        return
    if name not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {name!r}; allowed: {', '.join(OPTIMIZERS)}, package.module:name")
    allowed = OPTIMIZERS[name].options
    if momentum is not None and name != USUAL:
        raise ConfigError(f"momentum goes with optimizer {USUAL}, not {name}; its options are: {', '.join(allowed)}")
    if momentum is not None and not momentum >= 0:
        raise ConfigError(f"momentum {momentum:g} is not allowed; {MOMENTUM}")
    for option, value in options.items():
        if option not in allowed:
            raise ConfigError(f"optimizer {name} has no option {option!r:.40}; allowed: {', '.join(allowed)}")
        if option in FLAGS and value not in (0, 1):
            raise ConfigError(f"optimizer option {option} {value:g} is not allowed; use 0 or 1")
        if option in SHARES and not 0 <= value < 1:
            raise ConfigError(f"optimizer option {option} {value:g} is not allowed; use 0 to less than 1")
        if option == "eps" and not 0 <= value <= LARGEST:
            raise ConfigError(f"optimizer option eps {value:g} is not allowed; use 0 or more")
    try:
        OPTIMIZERS[name].made([nn.Parameter(torch.zeros(1))], **_arguments(momentum, options))
    except ValueError as error:  # PyTorch's own ranges
        raise ConfigError(f"optimizer {name}: {one_line(error)}") from None


def maker(experiment: Experiment) -> MakeOptimizer:
    """What makes the optimizer of a resolved experiment from its parameters.

    One of the user's own is called with them and, where given, `lr`, `weight_decay`, `momentum` and the options.
    """
    name, options = experiment.optimizer or USUAL, experiment.optimizer_options
    if not named.is_own(name):
        arguments = _arguments(experiment.momentum, options)
        arguments |= {"lr": experiment.lr, "weight_decay": experiment.weight_decay or 0.0}
        made = OPTIMIZERS[name].made
        return lambda parameters: made(parameters, **arguments)
    given: dict[str, Any] = {k: getattr(experiment, k) for k in ("lr", "weight_decay", "momentum")}
    given = {k: v for k, v in given.items() if v is not None}
    given |= named.numbers("optimizer", named.find("optimizer", name), options)

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = named.make("optimizer", name, parameters, given=given)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(f"optimizer {name} gives a {type(optimizer).__name__}; a torch.optim one is needed")
        return optimizer

    return make


def _arguments(momentum: float | None, options: Mapping[str, float]) -> dict[str, Any]:
    """As PyTorch calls them."""
    arguments: dict[str, Any] = {k: bool(v) if k in FLAGS else v for k, v in options.items()}
    if not momentum:  # dampening does nothing then; a run that began before it was refused (effect.py) goes on
        arguments.pop("dampening", None)
    if momentum is not None:
        arguments["momentum"] = momentum
    if {"beta1", "beta2"} & arguments.keys():
        arguments["betas"] = (arguments.pop("beta1", 0.9), arguments.pop("beta2", 0.999))
    return arguments
