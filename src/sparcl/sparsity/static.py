"""Static sparsity: a mask from before the first step that never moves. The least a sparse method must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from sparcl.errors import ConfigError, unknown
from sparcl.nn.follow import not_normalised
from sparcl.nn.layers import Prunable, SparseLayer
from sparcl.sparsity.importance import lowest, preserved_buffers
from sparcl.sparsity.patterns import Pattern, layer_densities
from sparcl.sparsity.sparsifier import MaskSparsifier

DEFAULT_SPARSITY = 0.90
"""Of every sparsifier, in Python and on the command line."""

FIRST_MASKS = ("magnitude", "random")


class Static(MaskSparsifier):
    """A fixed mask; also the start of every sparsifier that then moves its mask.

    Where no normalisation follows a layer (`not_normalised`), the weights of its first mask are scaled so that their
    sum of squares, and with it the variance of the layer's output, is that of the dense layer: by 1/√density where the
    mask is random. Their gradients are scaled by 1/density, so that a step moves that output as far as a dense one
    would. A BatchNorm behind the layer does both by itself.

    Args:
        sparsity: share of the prunable weights that is zero and not trained, 0 to .99.
        pattern: which weights are active together: `unstructured`, `block` (of four output channels) or a Pattern.
        distribution: `uniform` (one ratio for each layer) or `erk`.
        prunable: which layers; None for the published choice.
        first_mask: `magnitude`, the largest |w| of each layer (the published code), which keeps what given weights have
            learned; or `random`, which `sparcl run` asks for, as its networks are fresh.

    Raises:
        ConfigError: a value outside its range.
    """

    name = "static"
    borderless = True

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
        first_mask: str = "magnitude",
    ) -> None:
        super().__init__(Pattern() if pattern is None else pattern, prunable)
        check_sparsity(sparsity)
        if first_mask not in FIRST_MASKS:
            raise ConfigError(unknown("first mask", first_mask, FIRST_MASKS))
        layer_densities([], sparsity, distribution)
        self.sparsity, self.distribution, self.first_mask = sparsity, distribution, first_mask

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Self:
        """Bind, and make the network sparse at once, before the first step."""
        super().attach(model, optimizer, seed)
        shapes = [layer.shape for layer in self.layers]
        self.target = [
            max(1, round(density * self.pattern.units(shape)))
            for density, shape in zip(self.densities(shapes), shapes, strict=True)
        ]
        with preserved_buffers(model):
            self.scaled = not_normalised(model, [layer.name for layer in self.layers])
        for layer in self.layers:  # of a model that was sparse before: its zeros are candidates as well
            if len(layer.index) < math.prod(layer.shape):
                layer.set_index(torch.arange(math.prod(layer.shape), device=layer.index.device), optimizer)
        self._start()
        return self

    def _start(self) -> None:
        nothing = torch.empty(0, dtype=torch.int64)
        for layer, count in zip(self.layers, self.target, strict=True):
            random = self.first_mask == "random"
            units = self.draw_unused(layer, nothing, count) if random else self._largest(layer, count)
            self.set_first_units(layer, units)

    def _largest(self, layer: SparseLayer, count: int) -> Tensor:
        """The `count` units with the largest mean |w|, ascending; equal ones are decided by a draw."""
        score = self.pattern.score(layer.gather(layer.parameter).abs(), None, layer.shape)
        # int32: half the memory, the same draw
        order = torch.randperm(len(score), generator=self.generator, dtype=torch.int32)
        return (~lowest(score, len(score) - count, order.to(score.device))).nonzero().squeeze(1)

    @torch.no_grad()
    def set_first_units(self, layer: SparseLayer, units: Tensor) -> None:
        """Make these units (ascending) of a dense layer its first active ones; scaled, where no norm follows."""
        scaled = layer.name in self.scaled
        before = _sum_of_squares(layer) if scaled else 0.0
        self.set_units(layer, units)
        if scaled and 0.0 < (after := _sum_of_squares(layer)) < before < math.inf:
            layer.parameter.mul_(math.sqrt(before / after))

    def after_backward(self) -> None:
        self.check_bound()
        self.scale_gradients()
        super().after_backward()

    def scale_gradients(self) -> None:
        """Of the layers that no normalisation follows, by 1/density."""
        for layer, target in zip(self.layers, self.target, strict=True):
            if layer.name in self.scaled and layer.parameter.grad is not None:
                layer.parameter.grad.mul_(self.pattern.units(layer.shape) / target)

    def densities(self, shapes: Sequence[tuple[int, ...]]) -> list[float]:
        return layer_densities(shapes, self.sparsity, self.distribution)

    def active(self) -> int:
        """Active weights over all prunable layers."""
        return sum(len(layer.index) for layer in self.layers)


def _sum_of_squares(layer: SparseLayer) -> float:
    """Over the active weights, in double precision, so that every device and backend finds the same factor."""
    return float(layer.gather(layer.parameter).double().square().sum())


def check_sparsity(sparsity: float) -> None:
    """Raise ConfigError unless 0 <= sparsity <= .99."""
    if not 0.0 <= sparsity <= 0.99:
        raise ConfigError(f"sparsity {sparsity} is not allowed; use a value from 0 to 0.99")
