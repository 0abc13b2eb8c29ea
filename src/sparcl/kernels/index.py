"""From masks to positions and back: `index` is int32 [K], ascending row-major positions of a mask's True elements."""

from __future__ import annotations

import torch
from torch import Tensor

from sparcl.errors import ConfigError

# O output channels, K nonzeros


def index_of(mask: Tensor) -> Tensor:
    """Ascending row-major positions, int32 [K], of the nonzero elements of `mask`, of any shape.

    Raises:
        ConfigError: the mask has 2^31 elements or more.
    """
    if mask.numel() >= 2**31:
        raise ConfigError(f"a native layer has fewer than 2^31 weights, not {mask.numel()}")
    return mask.reshape(-1).nonzero().reshape(-1).to(torch.int32)


def mask_of(index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of `shape` that is True at `index` [K]."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[index.long()] = True
    return mask


def scatter(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense tensor of `shape` with `values` [K] at `index` [K] and 0 elsewhere."""
    dense = torch.zeros(shape, dtype=values.dtype)
    dense.view(-1)[index.long()] = values.detach()
    return dense


def gather(dense: Tensor, index: Tensor) -> Tensor:
    """The values [K] of `dense` at `index` [K]."""
    return dense.detach().reshape(-1)[index.long()]
