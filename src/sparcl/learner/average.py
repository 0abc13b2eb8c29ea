"""An average of the weights, which answers in their place: single steps pull a network about, their mean less.

Polynomial-decay averaging (Shamir and Zhang, ICML 2013): it spans a share of the task's steps so far, however many they
are. It takes no part in training. It stands with the optimizer's state of each weight, so that it moves with the masks,
grows with the head and is saved with both; that of BatchNorm's running statistics stands here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.methods.method import Method
from sparcl.nn.layers import AVERAGE

STATISTICS = ("running_mean", "running_var")
ANSWERS_NOW = "the model's weights are their average at present: leave `averaged` first"


def check_share(share: float | None, method: type[Method] = Method) -> float | None:
    """Refuse a share that is none, and a method that keeps each task's weights apart (ConfigError).

    Returned is the share as Python's own number.
    """
    if share is None:
        return None
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
        raise ConfigError(
            f"average {share!r:.40} is not allowed; use a share of a task's steps above 0 and less than 1, such as 0.1"
        )
    if "class-il" not in method.scenarios:
        raise ConfigError(f"method {method.name} keeps each task's weights as they are: leave average out")
    return float(share)


class Average:
    """The average of what an optimizer moves in a model, and of the model's running statistics.

    Args:
        share: a, 0 < a < 1. After step t of a task, from 1, the average is 1 / (1 + a (t - 1)) of the weights and
            the rest of what it was (there eta = 1 / a - 1).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> None:
        self.model, self.optimizer, self.share = model, optimizer, share
        self.statistics: dict[str, Tensor] = {}
        self.answers = False
        """Whether the model's weights are the average at present."""

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take in the weights after step t of the task, from 1. What moves for the first time is its own average."""
        pairs = [*self._weights()]
        for name, now in self._running().items():
            pairs.append((self.statistics.setdefault(name, now.clone()), now))
        if pairs:
            take_in = get_ema_multi_avg_fn(1 - 1 / (1 + self.share * (step - 1)))  # type: ignore[no-untyped-call]
            take_in([kept for kept, _ in pairs], [now for _, now in pairs], 0)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average answers in here; the weights are then as they were, to the bit."""
        if self.answers:
            yield
            return
        running = self._running()
        pairs = [*self._known(), *((kept, running[name]) for name, kept in self.statistics.items())]
        trained = [now.detach().clone() for _, now in pairs]
        self.answers = True
        try:
            _copy([kept for kept, _ in pairs], [now for _, now in pairs])
            yield
        finally:
            _copy(trained, [now for _, now in pairs])
            self.answers = False

    def state_dict(self) -> dict[str, Tensor]:
        """Running statistics by name; the weights' averages are with the optimizer's state."""
        return dict(self.statistics)

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict()`.

        Raises:
            CheckpointError: it is another model's.
        """
        running = self._running()
        known = {name: running[name] for name in running if isinstance(state, Mapping) and name in state}
        checks.keys(state, known, "the average of running statistics")
        for name, like in known.items():
            checks.tensor(state[name], f"average of {name}", like.dtype, tuple(like.shape))
        self.statistics = {name: state[name].to(like.device).clone() for name, like in known.items()}

    def _weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Average and weight of each parameter that this step or one before has moved."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.optimizer.state[parameter]
                    if AVERAGE not in state:
                        state[AVERAGE] = parameter.detach().clone()
        yield from self._known()

    def _known(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if AVERAGE in (state := self.optimizer.state.get(parameter, {})):
                    yield state[AVERAGE], parameter.detach()

    def _running(self) -> dict[str, Tensor]:
        buffers = self.model.named_buffers()
        return {name: b for name, b in buffers if name.rpartition(".")[2] in STATISTICS and b.is_floating_point()}


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)
