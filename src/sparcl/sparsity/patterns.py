"""Which weights may be active together: one by one, or in blocks of output channels that share their positions.

Legend: a *unit* is what is removed, grown or frozen as a whole. O output channels, P = I/groups · kh · kw positions of
one output channel, G channels a block. Unstructured: unit u is weight u. Block: unit b·P + p holds the G weights
(b·G + j)·P + p, j = 0..G-1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparcl.errors import ConfigError, unknown
from sparcl.recorded import Recorded, refuse
from sparcl.whole import is_whole

PATTERNS = ("unstructured", "block")
BLOCK = 4
"""Output channels of a block, where no other number is asked for."""


@dataclass(frozen=True)
class Pattern(Recorded):
    """A pattern of activity; `block` = 1 is unstructured."""

    block: int = 1

    def __post_init__(self) -> None:
        if not is_whole(self.block):
            raise ConfigError(f"block size {self.block!r} is not allowed; use a whole number from 1 (unstructured) on")

    def units(self, shape: tuple[int, ...]) -> int:
        """Number of units of a weight."""
        return math.prod(shape) // self.block

    def check(self, name: str, shape: tuple[int, ...], groups: int = 1) -> None:
        """Raise ConfigError where blocks do not fit a layer's output channels."""
        if (shape[0] // groups) % self.block:
            raise ConfigError(
                f"pattern block needs output channels (per group) divisible by {self.block}; layer {name} has"
                f" {shape[0] // groups}: leave it out of `prunable` or use pattern unstructured"
            )

    def expand(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Ascending positions [units · G] of the weights in `units`."""
        if self.block == 1:
            return units
        per_channel = math.prod(shape[1:])
        first = (units // per_channel) * (self.block * per_channel) + units % per_channel
        members = first[:, None] + per_channel * torch.arange(self.block, device=units.device)
        return members.flatten().sort().values

    def of_index(self, index: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Ascending units that an ascending list of positions makes up."""
        if self.block == 1:
            return index
        per_channel = math.prod(shape[1:])
        channel = index // per_channel
        head = index[channel % self.block == 0]
        return (head // per_channel) // self.block * per_channel + head % per_channel

    def score(self, scores: Tensor, index: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Score of each active unit, in the order of `of_index`: the mean of its weights' scores [K].

        Without an index every weight is active: a list of positions, and one of where a block's lie in it, are memory
        for nothing.
        """
        if self.block == 1:
            return scores
        if index is None:
            return scores.view(shape[0] // self.block, self.block, -1).mT.reshape(-1, self.block).mean(dim=1)
        return scores[self._members(index, shape)].mean(dim=1)

    def spread(self, per_unit: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The value of each active unit (in the order of `of_index`) at each of its weights, [K]."""
        if self.block == 1:
            return per_unit
        members = self._members(index, shape)
        out = torch.empty(len(index), dtype=per_unit.dtype, device=per_unit.device)
        out[members] = per_unit[:, None].expand_as(members)
        return out

    def _members(self, index: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Places in `index`, [units, G], of each active unit's weights."""
        per_channel = math.prod(shape[1:])
        unit = index // (per_channel * self.block) * per_channel + index % per_channel
        return torch.sort(unit, stable=True).indices.view(-1, self.block)


def make_pattern(name: Pattern | str, block: int = BLOCK) -> Pattern:
    """Pattern by name, in blocks of so many output channels; a Pattern is itself."""
    if isinstance(name, Pattern):
        return name
    if name not in PATTERNS:
        raise ConfigError(unknown("pattern", name, PATTERNS))
    if name == "block" and block < 2:
        raise ConfigError(f"block size {block} is not allowed; use 2 or more (or pattern unstructured)")
    return Pattern(block if name == "block" else 1)


def check_block(block: int, patterns: Sequence[Pattern | str]) -> None:
    """Raise ConfigError where a size of blocks is asked for and no pattern is in blocks of a size of one's choice."""
    if block != BLOCK and "block" not in patterns:
        refuse(f"block size {block} goes with pattern block, not {' and '.join(map(str, patterns))}")


DISTRIBUTIONS = ("uniform", "erk")


def layer_densities(shapes: Sequence[tuple[int, ...]], sparsity: float, distribution: str) -> list[float]:
    """Density of each prunable layer, so that together they have `sparsity`.

    `uniform`: one ratio for each layer (published). `erk`: Erdős-Rényi-Kernel (Evci et al., RigL, 2020): density
    proportional to (sum of the weight's dimensions) / (their product), capped at 1.
    """
    if distribution not in DISTRIBUTIONS:
        raise ConfigError(unknown("sparsity distribution", distribution, DISTRIBUTIONS))
    if distribution == "uniform":
        return [1.0 - sparsity] * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:  # layers that would exceed density 1 are filled, and the rest share what is left
        budget = (1.0 - sparsity) * sum(sizes) - sum(sizes[i] for i in full)
        weight = sum(raw[i] * sizes[i] for i in range(len(sizes)) if i not in full)
        scale = budget / weight if weight else 0.0
        over = {i for i in range(len(sizes)) if i not in full and scale * raw[i] > 1.0}
        if not over:
            return [1.0 if i in full else scale * raw[i] for i in range(len(sizes))]
        full |= over
