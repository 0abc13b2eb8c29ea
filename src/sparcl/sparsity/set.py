"""SET, sparse evolutionary training (Mocanu et al., Nature Communications, 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparcl.nn.layers import Prunable
from sparcl.sparsity.drop_grow import DropGrow
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.static import DEFAULT_SPARSITY


class SET(DropGrow):
    """After every epoch but the last, drop the share ζ of smallest magnitude and grow as many at random.

    In tasks of one epoch the mask never moves: it is Static then.

    Args:
        sparsity, pattern, distribution, prunable, first_mask: see Static; `erk` is the paper's Erdős-Rényi, for
            kernels.
        fraction: ζ (published: .3), the same at every update.
    """

    name = "set"

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        fraction: float = 0.3,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
        first_mask: str = "magnitude",
    ) -> None:
        super().__init__(
            sparsity,
            fraction=fraction,
            stop=1.0,
            pattern=pattern,
            distribution=distribution,
            prunable=prunable,
            first_mask=first_mask,
        )

    def interval(self) -> int:
        return self.steps

    def grow_scores(self) -> list[Tensor]:
        """At random, drawn on the CPU so that every device and backend grows the same."""
        sizes = [(math.prod(layer.shape), layer.parameter.device) for layer in self.layers]
        return [torch.rand(size, generator=self.generator).to(device) for size, device in sizes]
