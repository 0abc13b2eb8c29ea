"""Static sparsity: a random mask, drawn before the first step and never moved. The least a sparse method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from sparcl.errors import ConfigError
from sparcl.nn.layers import Prunable
from sparcl.sparsity.patterns import Pattern, layer_densities
from sparcl.sparsity.sparsifier import MaskSparsifier

DEFAULT_SPARSITY = 0.90
"""Of every sparsifier, in Python and on the command line."""


class Static(MaskSparsifier):
    """A fixed random mask; also the start of every sparsifier that then moves its mask.

    Args:
        sparsity: share of the prunable weights that is zero and not trained, 0 to .99.
        pattern: which weights are active together.
        distribution: `uniform` (one ratio for each layer) or `erk`.
        prunable: which layers; None for the published choice.

    Raises:
        ConfigError: a value outside its range.
    """

    name = "static"

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        pattern: Pattern | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
    ) -> None:
        super().__init__(pattern or Pattern(), prunable)
        check_sparsity(sparsity)
        layer_densities([], sparsity, distribution)
        self.sparsity, self.distribution = sparsity, distribution

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Self:
        """Bind, and make the network sparse at once: a random mask, before the first step."""
        super().attach(model, optimizer, seed)
        shapes = [layer.shape for layer in self.layers]
        self.target = [
            max(1, round(density * self.pattern.units(shape)))
            for density, shape in zip(self.densities(shapes), shapes, strict=True)
        ]
        self._start()
        return self

    def _start(self) -> None:
        nothing = torch.empty(0, dtype=torch.int64)
        for layer, count in zip(self.layers, self.target, strict=True):
            self.set_units(layer, self.draw_unused(layer, nothing, count))

    def densities(self, shapes: Sequence[tuple[int, ...]]) -> list[float]:
        return layer_densities(shapes, self.sparsity, self.distribution)

    def active(self) -> int:
        """Active weights over all prunable layers."""
        return sum(len(layer.index) for layer in self.layers)


def check_sparsity(sparsity: float) -> None:
    """Raise ConfigError unless 0 <= sparsity <= .99."""
    if not 0.0 <= sparsity <= 0.99:
        raise ConfigError(f"sparsity {sparsity} is not allowed; use a value from 0 to 0.99")
