"""Activations in bfloat16: a chain against its layers in float32, rounded where the chain writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chains import Memory, chain_one_by_one, copied, make_blocks, make_stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.kernels import layout
from sparcl.kernels.block import Block, ConvNorm, residual_chain

pytestmark = pytest.mark.usefixtures("isa")  # each test once for each instruction set
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

STEP = 2.0**-8
"""Between two halves, as a share of them: a rounding is off by half of it at most."""


def rounded(x: Tensor) -> Tensor:
    return layout.to_batch_last(x.bfloat16().float())


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, kept: bool) -> Tensor:
        return rounded(x) if kept else x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return rounded(gradient), None


HALVES = Memory(lambda x: _Rounded.apply(x, True), lambda x: _Rounded.apply(x, False))


def in_halves(x: Tensor, blocks: list[Block], stem: ConvNorm | None, pool: bool) -> Tensor:
    return residual_chain(x, blocks, stem, pool, halves=True)


def chain_in_floats(x: Tensor, blocks: list[Block], stem: ConvNorm | None, pool: bool) -> Tensor:
    return residual_chain(x, blocks, stem, pool)


def in_rounded_floats(x: Tensor, blocks: list[Block], stem: ConvNorm | None, pool: bool) -> Tensor:
    return chain_one_by_one(x, blocks, stem, pool, HALVES)


def outcomes(
    compute: Any, x: Tensor, stem: ConvNorm, blocks: list[Block], gradient: Tensor, frozen: float = 0.0
) -> list[Tensor]:
    """The result, running statistics, and the gradients of x and of all parameters but a share that is frozen."""
    drawn = torch.Generator().manual_seed(1)
    own = [copied(stage, (torch.rand(3, generator=drawn) >= frozen).tolist()) for stage in (stem, *sum(blocks, ()))]
    own_blocks = [Block(*own[first : first + 3]) for first in range(1, len(own), 3)]
    x = layout.to_batch_last(x.clone()).requires_grad_(frozen == 0)
    y = compute(x, own_blocks, own[0], True)
    if y.requires_grad:
        y.backward(gradient)
    tensors = [x, *(t for stage in own if stage is not None for t in stage[1:6] if t is not None)]
    return [y.detach(), *(t.grad if t.requires_grad else t for t in tensors)]


def steps_apart(ours: list[Tensor], theirs: list[Tensor], floats: list[Tensor]) -> float:
    """How many steps of rounding two of nearly the same number are apart; up to 8 is close.

    What cancels out in a sum leaves a step behind: so all that was computed is held together (a third of its steps, for
    a number in a wrong place is all of it), and two thirds of the tensors one by one.
    """
    apart = [float((a - b).norm() / (c.norm() + 1e-3)) for a, b, c in zip(ours, theirs, floats, strict=True)]
    a, b, c = (torch.cat([t.flatten() for t in tensors]) for tensors in (ours, theirs, floats))
    return max(sorted(apart)[len(apart) * 2 // 3], float((a - b).norm() / c.norm()) / 3) / STEP


@many
@given(data=st.data())
def test_what_floats_give_that_are_rounded_as_they_are_written(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**31))
    options = {
        "density": data.draw(st.sampled_from((0.1, 0.5, 1.0))),
        "block": data.draw(st.sampled_from((1, 4))),
        "affine": data.draw(st.booleans()),
        "training": data.draw(st.booleans()),
    }
    inputs = data.draw(st.sampled_from((4, 20)))
    steps = data.draw(st.lists(st.sampled_from([(4, 1), (20, 1), (8, 2)]), min_size=1, max_size=3))
    size = data.draw(st.sampled_from([(8, 8), (5, 6), (13, 9), (1, 3)]))
    samples, frozen = data.draw(st.sampled_from((16, 32, 48))), data.draw(st.sampled_from((0.0, 0.5, 0.9)))

    def apart(again: int) -> float:
        torch.manual_seed(seed + again)
        blocks, stem = make_blocks(inputs, steps, **options), make_stage(3, inputs, 3, 1, **{**options, "density": 1.0})
        x, gradient = torch.randn(samples, 3, *size), torch.randn(samples, steps[-1][0])
        computed = (
            outcomes(compute, x, stem, blocks, gradient, frozen)
            for compute in (in_halves, in_rounded_floats, chain_one_by_one)
        )
        return steps_apart(*computed)

    # Now and then a rounding that falls the other way goes through all of a network, as does an input that is moved by
    # a millionth: 14 steps were seen. What is computed wrongly is so in the next network, too.
    assert any(apart(again) <= 8 for again in range(3))


def test_results_so_large_that_they_go_past_the_caches() -> None:
    torch.manual_seed(0)
    options = {"density": 0.03, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(64, [(64, 1)], **options), make_stage(3, 64, 3, 1, **{**options, "density": 1.0})
    x, gradient = torch.randn(32, 3, 32, 32), torch.randn(32, 64)
    ours, theirs, floats = (
        outcomes(compute, x, stem, blocks, gradient) for compute in (in_halves, in_rounded_floats, chain_one_by_one)
    )
    assert steps_apart(ours, theirs, floats) <= 8


@pytest.mark.parametrize("samples", [1, 7, 33])
def test_batches_of_other_sizes_are_floats_to_the_bit(samples: int) -> None:
    torch.manual_seed(0)
    options = {"density": 0.5, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(4, [(4, 1), (8, 2)], **options), make_stage(3, 4, 3, 1, **options)
    x, gradient = torch.randn(samples, 3, 8, 8), torch.randn(samples, 8)
    ours, floats = (outcomes(compute, x, stem, blocks, gradient) for compute in (in_halves, chain_one_by_one))
    assert all(torch.equal(a, b) for a, b in zip(ours, floats, strict=True))


def test_no_samples_give_no_results_and_zero_gradients() -> None:
    """It was a division by the number of pieces, which ended the process."""
    options = {"density": 0.5, "block": 1, "affine": True, "training": False}
    blocks, stem = make_blocks(4, [(4, 1), (8, 2)], **options), copied(make_stage(3, 4, 3, 1, **options), [True] * 3)
    y = in_halves(torch.randn(0, 3, 8, 8), blocks, stem, True)
    y.sum().backward()
    assert y.shape == (0, 8)
    assert all(not tensor.grad.any() for tensor in stem[1:4])


def test_without_gradients_all_is_float_to_the_bit() -> None:
    torch.manual_seed(0)
    options = {"density": 0.5, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(4, [(4, 1), (8, 2)], **options), make_stage(3, 4, 3, 1, **options)
    x = layout.to_batch_last(torch.randn(32, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(in_halves(x, blocks, stem, True), chain_one_by_one(x, blocks, stem, True))


def test_the_same_bits_for_any_number_of_threads_and_again() -> None:
    torch.manual_seed(0)
    options = {"density": 0.3, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(16, [(16, 1), (32, 2)], **options), make_stage(3, 16, 3, 1, **options)
    x, gradient = torch.randn(32, 3, 16, 16), torch.randn(32, 32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            found.append(outcomes(in_halves, x, stem, blocks, gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_half_the_memory_is_kept() -> None:
    torch.manual_seed(0)
    options = {"density": 0.5, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(4, [(4, 1), (4, 1), (4, 1)], **options), make_stage(4, 4, 3, 1, **options)
    stem = copied(stem, [True] * 3)
    x = layout.to_batch_last(torch.randn(32, 4, 8, 8))
    kept = []
    for compute in (chain_in_floats, in_halves):
        before = int(kernels._native.arena_use()[0])
        y = compute(x, blocks, stem, True)
        kept.append(int(kernels._native.arena_use()[0]) - before)
        del y
    floats, halves = kept
    assert 0.45 * floats < halves < 0.55 * floats


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    torch.manual_seed(0)
    options = {"density": 1.0, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(4, [(4, 1)], **options), make_stage(3, 4, 3, 1, **options)
    x = torch.randn(16, 3, 4, 4)
    x[3, 1, 2, 2] = bad
    assert bool(outcomes(in_halves, x, stem, blocks, torch.ones(16, 4))[0].isnan().any())


@pytest.mark.parametrize(("with_stem", "pool"), [(True, False), (False, True)])
def test_a_part_of_a_network_is_refused(with_stem: bool, pool: bool) -> None:
    options = {"density": 0.5, "block": 1, "affine": True, "training": True}
    blocks, stem = make_blocks(4, [(4, 1)], **options), make_stage(4, 4, 3, 1, **options)
    with pytest.raises(ConfigError, match="a stem before the blocks and the mean behind them"):
        residual_chain(torch.randn(16, 4, 4, 4), blocks, stem if with_stem else None, pool, halves=True)
