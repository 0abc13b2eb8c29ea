"""A loss that became NaN or infinite must not go unnoticed, nor cost an accelerator a wait in every step."""

from __future__ import annotations

import torch
from torch import Tensor

from sparcl.errors import TrainingError
from sparcl.learner.position import Position, StreamPosition

INTERVAL = 50
"""On an accelerator losses are looked at once in so many steps."""


class LossWatch:
    """Looks at each step's loss: at once on a CPU, in groups on an accelerator."""

    def __init__(self) -> None:
        self._unchecked: list[Tensor] = []

    def __call__(self, loss: Tensor, position: Position | StreamPosition) -> None:
        """The loss of the step at `position`, before its backward pass.

        Raises:
            TrainingError: it, or one of a step before it, is not finite (names task, epoch and step).
        """
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                raise _not_finite(position, 0)
            return
        self._unchecked.append(loss.detach())
        if len(self._unchecked) >= INTERVAL:
            self.settle(position)

    def settle(self, position: Position | StreamPosition) -> None:
        """Look at all losses not yet looked at; `position` is that of the last."""
        if self._unchecked:
            bad = (~torch.isfinite(torch.stack(self._unchecked))).nonzero()
            behind = len(self._unchecked) - 1
            self._unchecked = []
            if len(bad):
                raise _not_finite(position, behind - int(bad[0]))


def _not_finite(position: Position | StreamPosition, steps_ago: int) -> TrainingError:
    return TrainingError(
        f"the loss became NaN or infinite in {position.place(steps_ago)}: lower the learning rate or check the data"
    )
