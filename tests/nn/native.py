"""For the tests of the native modules: layers with a given mask, and the comparison with float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparcl import kernels
from sparcl.nn.compact import CompactLayer, compact_layer

needs_native = pytest.mark.skipif(not kernels.available(), reason=kernels.why_unavailable())

ACCURACY = 1e-4
"""max|a - b| <= ACCURACY * max|b|."""


def random_index(shape: tuple[int, ...], density: float, generator: torch.Generator, block: int = 1) -> Tensor:
    """Ascending positions; `block` neighbouring output channels share theirs."""
    units = torch.rand(shape[0] // block, *shape[1:], generator=generator) < density
    return units.repeat_interleave(block, dim=0).reshape(-1).nonzero().squeeze(1)


def compact(dense: nn.Module, index: Tensor) -> CompactLayer:
    layer = compact_layer(dense)
    layer.name = "layer"
    layer.set_index(index)
    return layer


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    if theirs.numel():
        assert (ours.double() - theirs.double()).abs().max() <= ACCURACY * theirs.abs().max() + 1e-30
