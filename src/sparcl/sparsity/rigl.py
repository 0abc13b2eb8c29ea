"""RigL (Evci et al., ICML 2020): grow where the gradient of the loss is largest."""

from __future__ import annotations

import math

from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.nn.gradients import dense_gradients
from sparcl.nn.layers import Prunable
from sparcl.sparsity.drop_grow import DropGrow
from sparcl.sparsity.importance import preserved_buffers
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.static import DEFAULT_SPARSITY

UPDATES_AT_LEAST = 10
"""In a task too short for the published interval, the mask is updated once in a tenth of it."""


class RigL(DropGrow):
    """Every ΔT iterations drop by magnitude and grow the top of the dense gradient outside the mask (Algorithm 1).

    The share moved decays within a task, α/2·(1 + cos(π·t/T_end)). The dense gradient is computed at the updates only,
    of the method's objective on one fresh batch; event `rigl.gradient` says for how many samples.

    Args:
        sparsity, pattern, distribution, prunable, first_mask: see Static.
        fraction: α (published: .3).
        every: ΔT, iterations between two updates (published: 100); at most a tenth of a task.
        stop: T_end, as a share of the task (published: .75).
    """

    name = "rigl"

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        fraction: float = 0.3,
        every: int = 100,
        stop: float = 0.75,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
        first_mask: str = "magnitude",
    ) -> None:
        super().__init__(
            sparsity,
            fraction=fraction,
            stop=stop,
            pattern=pattern,
            distribution=distribution,
            prunable=prunable,
            first_mask=first_mask,
        )
        if every < 1:
            raise ConfigError(f"RigL interval {every} is not allowed; use 1 iteration or more")
        if not 0.0 < stop <= 1.0:
            raise ConfigError(f"RigL stop {stop} is not allowed; it is a share of a task, above 0 to 1")
        self.every = every

    def interval(self) -> int:
        return max(1, min(self.every, self.total // UPDATES_AT_LEAST))

    def share(self) -> float:
        end = self.stop * self.total
        return self.fraction / 2 * (1 + math.cos(math.pi * min(1.0, self.iteration / end)))

    def grow_scores(self) -> list[Tensor]:
        """|∂L/∂w| at every position."""
        if self.losses is None:
            raise ConfigError("RigL ranks gradients: hand begin_task the method's losses")
        with preserved_buffers(self.model):
            gradients, samples = dense_gradients(self.model, self.layers, self.losses.total)
        self.notify("rigl.gradient", {"dense_gradient_samples": samples})
        return [gradient.abs() for gradient in gradients]
