"""SNIP (Lee et al., ICLR 2019): prune once, before training, by connection sensitivity."""

from __future__ import annotations

import math

from sparcl.errors import ConfigError
from sparcl.nn.gradients import dense_gradients
from sparcl.nn.layers import Prunable
from sparcl.sparsity.importance import Losses, lowest, preserved_buffers
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.static import DEFAULT_SPARSITY, Static


class SNIP(Static):
    """Keep, in each layer, the weights with the largest |w · ∂L/∂w| at initialisation; then a static mask.

    The paper ranks all layers together; here each layer keeps what `distribution` gives it, so that rivals at one
    sparsity cost the same. The first task's first `batches` batches decide; until then the network is dense.

    Args:
        sparsity, pattern, distribution, prunable: see Static.
        batches: fresh batches over which the gradient is averaged (the paper's one batch of 128 is four of 32).
    """

    name = "snip"

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        batches: int = 4,
        pattern: Pattern | str | None = None,
        distribution: str = "uniform",
        prunable: Prunable = None,
    ) -> None:
        super().__init__(sparsity, pattern=pattern, distribution=distribution, prunable=prunable)
        if batches < 1:
            raise ConfigError(f"batches is {batches}; connection sensitivity needs 1 or more")
        self.batches = batches

    def _start(self) -> None:
        """Stay dense: the mask waits for the first task's data."""

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Losses | None = None) -> None:
        del samples, epochs
        self.check_bound()
        if index == 0:
            self._prune(losses)

    def _prune(self, losses: Losses | None) -> None:
        if losses is None:
            raise ConfigError("SNIP ranks gradients: hand begin_task the method's losses")
        sensitivity = [layer.parameter.new_zeros(math.prod(layer.shape)) for layer in self.layers]
        seen = 0
        with preserved_buffers(self.model):
            for _ in range(self.batches):
                gradients, samples = dense_gradients(self.model, self.layers, losses.total)
                seen += samples
                for into, gradient in zip(sensitivity, gradients, strict=True):
                    into.add_(gradient)
        self.notify("snip.gradient", {"dense_gradient_samples": seen})
        for layer, gradient, target in zip(self.layers, sensitivity, self.target, strict=True):
            score = self.pattern.score((layer.gather(layer.parameter) * gradient).abs(), layer.index, layer.shape)
            units = self.active_units(layer)
            self.set_first_units(layer, units[~lowest(score, len(units) - target)])
        self.notify("snip.prune", {"active": self.active()})
