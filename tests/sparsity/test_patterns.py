"""Units against brute force, and layer densities against hand computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl.errors import ConfigError
from sparcl.sparsity import DGM, SET, SNIP, TDM, Pattern, RigL, SparCL, Static
from sparcl.sparsity.patterns import layer_densities, make_pattern
from sparcl.sparsity.sparsifier import MaskSparsifier


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pattern, tuple[int, ...], torch.Tensor]:
    block = draw(st.sampled_from([1, 2, 4]))
    blocks, inputs, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 3]))
    shape = (blocks * block, inputs) if kernel == 0 else (blocks * block, inputs, kernel, kernel)
    pattern = Pattern(block)
    units = draw(st.sets(st.integers(0, pattern.units(shape) - 1)))
    return pattern, shape, torch.tensor(sorted(units), dtype=torch.int64)


@given(cases())
def test_units_are_the_weights_of_neighbouring_channels_at_one_position(
    case: tuple[Pattern, tuple[int, ...], torch.Tensor],
) -> None:
    pattern, shape, units = case
    positions = math.prod(shape[1:])
    members = {  # unit b·P + p holds channels b·G ... b·G + G - 1 at position p
        u: [(u // positions * pattern.block + j) * positions + u % positions for j in range(pattern.block)]
        for u in units.tolist()
    }
    index = pattern.expand(units, shape)
    assert index.tolist() == sorted(i for unit in members.values() for i in unit)
    assert torch.equal(pattern.of_index(index, shape), units)

    scores = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
    found = pattern.score(scores[index], index, shape)
    assert found.shape == units.shape
    by_hand = torch.tensor([float(scores[m].mean()) for m in members.values()])
    torch.testing.assert_close(found, by_hand.view(-1))

    every = torch.arange(math.prod(shape))
    assert torch.equal(pattern.score(scores, None, shape), pattern.score(scores, every, shape)), "to the bit"

    values = torch.arange(len(units))
    spread = dict(zip(index.tolist(), pattern.spread(values, index, shape).tolist(), strict=True))
    assert spread == {i: v for v, unit in enumerate(members.values()) for i in unit}


def test_blocks_must_divide_the_channels_of_each_group() -> None:
    Pattern(4).check("a", (8, 3, 3, 3))
    Pattern(1).check("a", (7, 3, 3, 3))
    with pytest.raises(ConfigError, match="divisible by 4; layer a has 2"):
        Pattern(4).check("a", (8, 3, 3, 3), groups=4)


def test_names_and_sizes_of_patterns() -> None:
    assert make_pattern("unstructured").block == 1
    assert make_pattern("block").block == 4
    assert make_pattern("block", 2).block == 2
    with pytest.raises(ConfigError, match="allowed: unstructured, block"):
        make_pattern("rows")
    with pytest.raises(ConfigError, match="2 or more"):
        make_pattern("block", 1)


@pytest.mark.parametrize("make", [SparCL, TDM, Static, SNIP, SET, RigL])
def test_every_sparsifier_takes_a_pattern_or_its_name(make: Callable[..., MaskSparsifier | SparCL]) -> None:
    assert make(0.9).pattern == make(0.9, pattern="unstructured").pattern == Pattern()
    assert make(0.9, pattern="block").pattern == Pattern(4)
    assert make(0.9, pattern=Pattern(2)).pattern == Pattern(2)
    for wrong in ("blocks", "", 4):
        with pytest.raises(ConfigError, match=f"unknown pattern {wrong!r}; allowed: unstructured, block"):
            make(0.9, pattern=wrong)


def test_dgm_takes_a_pattern_or_its_name() -> None:
    assert DGM(0.2, pattern="block").pattern == DGM(0.2, pattern=Pattern(4)).pattern == Pattern(4)


@pytest.mark.parametrize("block", [0, -4])
def test_a_block_is_one_channel_or_more(block: Any) -> None:
    with pytest.raises(ConfigError, match=r"block size .* is not allowed; use a whole number from 1"):
        Pattern(block)


@pytest.mark.parametrize("block", [2.5, "4", True, None])
def test_a_block_is_a_whole_number_of_channels(block: Any) -> None:
    with pytest.raises(ConfigError, match=f"block {block!r} is not allowed for Pattern; use a whole number"):
        Pattern(block)


def test_uniform_gives_each_layer_one_ratio() -> None:
    assert layer_densities([(8, 4, 3, 3), (12, 7)], 0.9, "uniform") == pytest.approx([0.1, 0.1])


def test_erk_by_hand() -> None:
    shapes: list[tuple[int, ...]] = [(64, 64, 3, 3), (128, 64, 3, 3)]
    raw = [(64 + 64 + 6) / 36_864, (128 + 64 + 6) / 73_728]
    scale = 0.1 * (36_864 + 73_728) / (134 + 198)
    assert layer_densities(shapes, 0.9, "erk") == pytest.approx([scale * r for r in raw])


@given(
    shapes=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=6),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]),
)
def test_erk_keeps_the_budget_and_no_density_above_one(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    densities = layer_densities(shapes, sparsity, "erk")
    sizes = [math.prod(shape) for shape in shapes]
    assert all(0.0 <= d <= 1.0 + 1e-12 for d in densities)
    total = sum(d * n for d, n in zip(densities, sizes, strict=True))
    assert total == pytest.approx((1 - sparsity) * sum(sizes))
    ratios = [d / (sum(s) / n) for d, s, n in zip(densities, shapes, sizes, strict=True) if d < 1.0 - 1e-12]
    assert ratios == pytest.approx(ratios[:1] * len(ratios))  # one scale for all that are not full


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ConfigError, match="allowed: uniform, erk"):
        layer_densities([(2, 2)], 0.5, "even")
