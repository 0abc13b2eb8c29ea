"""Residual blocks in one operation against the same operations one by one: the same bits, on each instruction set."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
import torch
from chains import chain_one_by_one, copied, draw_chain, make_stage, one_by_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.kernels import layout, ops
from sparcl.kernels.block import Block, ConvNorm, residual_chain

pytestmark = pytest.mark.usefixtures("isa")  # each test once for each instruction set
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def residual_block(x: Tensor, first: ConvNorm, second: ConvNorm, shortcut: ConvNorm | None = None) -> Tensor:
    return residual_chain(x, [Block(first, second, shortcut)])


def arena_bytes() -> int:
    """Of all activations that live."""
    return int(kernels._native.arena_use()[0])


Outcome = tuple[list[Tensor | None], dict[str, int]]


def outcome(y: Tensor, x: Tensor, stages: Sequence[ConvNorm | None]) -> Outcome:
    """The result, x, parameters and buffers, the gradients, and the multiply-adds that all took."""
    leaves = [x, *(t for stage in stages if stage for t in stage[1:7] if t is not None)]
    return [y.detach(), *(t.detach() for t in leaves), *(t.grad for t in leaves)], kernels.counters()


def assert_same_outcome(one: Outcome, other: Outcome) -> None:
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@many
@given(data=st.data())
def test_the_same_bits_as_one_by_one(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    inputs, outputs, stride = data.draw(st.sampled_from([(4, 4, 1), (40, 40, 1), (4, 8, 2), (3, 4, 1), (8, 4, 3)]))
    options = {
        "density": data.draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        "block": data.draw(st.sampled_from((1, 4))),
        "affine": data.draw(st.booleans()),
    }
    modes = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    first = make_stage(inputs, outputs, 3, stride, training=modes[0], **options)
    second = make_stage(outputs, outputs, 3, 1, training=modes[1], **options)
    options["density"] = data.draw(st.sampled_from((0.0, 0.5, 1.0)))
    with_shortcut = inputs != outputs or data.draw(st.booleans())
    shortcut = make_stage(inputs, outputs, 1, stride, training=modes[2], **options) if with_shortcut else None
    size = data.draw(st.sampled_from([(4, 4), (5, 9), (17, 2)]))
    x = torch.randn(data.draw(st.sampled_from((0, 1, 7, 32, 33))), inputs, *size)
    if len(x) == 0:
        first, second = first._replace(training=False), second._replace(training=False)
        shortcut = shortcut and shortcut._replace(training=False)
    some = st.lists(st.booleans(), min_size=3, max_size=3)
    wanted = [data.draw(st.one_of(st.just([True] * 3), st.just([False] * 3), some)) for _ in range(3)]
    want_x = data.draw(st.booleans())
    results, gradient = [], None
    for compute in (residual_block, one_by_one):
        stages = [copied(stage, wants) for stage, wants in zip((first, second, shortcut), wanted, strict=True)]
        own = layout.to_batch_last(x.clone()).requires_grad_(want_x)
        kernels.reset_counters()
        y = compute(own, *stages)
        gradient = torch.randn(y.shape) if gradient is None else gradient
        if y.requires_grad:
            y.backward(gradient)
        results.append(outcome(y, own, stages))
    assert_same_outcome(*results)


@many
@given(data=st.data())
def test_a_chain_gives_the_same_bits_as_one_by_one(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    blocks, stem = draw_chain(data, training=data.draw(st.booleans()))
    pool, want_x = data.draw(st.booleans()), data.draw(st.booleans())
    frozen = data.draw(st.sampled_from([0.0, 0.3, 0.8]))
    wanted = [[bool(w) for w in torch.rand(3) >= frozen] for _ in range(1 + 3 * len(blocks))]
    x = torch.randn(data.draw(st.sampled_from((2, 16, 33))), 3, 5, 6)
    results, gradient = [], None
    for compute in (residual_chain, chain_one_by_one):
        wants = iter(wanted)
        own_stem = copied(stem, next(wants))
        own_blocks = [Block(*(copied(stage, next(wants)) for stage in block)) for block in blocks]
        own = layout.to_batch_last(x.clone()).requires_grad_(want_x)
        kernels.reset_counters()
        y = compute(own, own_blocks, own_stem, pool)
        gradient = torch.randn(y.shape) if gradient is None else gradient
        if y.requires_grad:
            for again in (True, False):
                y.backward(gradient, retain_graph=again)
        results.append(outcome(y, own, [own_stem, *(stage for block in own_blocks for stage in block)]))
    assert_same_outcome(*results)


def test_a_chain_gives_memory_back_as_it_goes_and_goes_back_once() -> None:
    torch.manual_seed(0)
    stem, *stages = (make_stage(4, 4, 3, 1, density=0.5, block=1, affine=True, training=True) for _ in range(9))
    stages = [copied(stage, [True] * 3) for stage in stages]
    blocks = [Block(*pair) for pair in zip(stages[::2], stages[1::2], strict=True)]
    x = layout.to_batch_last(torch.randn(32, 4, 8, 8)).requires_grad_()
    one, before = x.numel() * 4, arena_bytes()
    y = residual_chain(x, blocks, stem)
    kept = 1 + 2 * len(blocks) + 2  # all convolutions, and every second block's result
    assert arena_bytes() - before == kept * one
    y.sum().backward(retain_graph=True)
    assert arena_bytes() - before == (kept + 1) * one  # and the input's gradient
    y.sum().backward()
    assert arena_bytes() - before == 2 * one  # the result and the input's gradient
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("stem", "sides", "results"),
    [(True, "   ", 2), (False, "   ", 2), (False, "    ", 3), (False, "sss", 1), (True, "s s ", 2), (True, " ss", 1)],
)
def test_results_that_one_pass_makes_again_are_not_kept(stem: bool, sides: str, results: int) -> None:
    """`sides`: s for a block with a shortcut of its own. A result is made of the stem's, a shortcut's or a kept one."""
    torch.manual_seed(0)
    options = {"density": 0.5, "block": 1, "affine": True, "training": True}
    blocks = []
    for side in sides:
        stages = [make_stage(4, 4, size, 1, **options) for size in ((3, 3, 1) if side == "s" else (3, 3))]
        blocks.append(Block(*(copied(stage, [True] * 3) for stage in stages)))
    x = layout.to_batch_last(torch.randn(32, 4, 8, 8))  # whole pages
    before = arena_bytes()
    y = residual_chain(x, blocks, make_stage(4, 4, 3, 1, **options) if stem else None)
    convolutions = int(stem) + 2 * len(sides) + sides.count("s")
    assert arena_bytes() - before == (convolutions + results) * x.numel() * 4
    assert y.requires_grad


def test_an_input_that_a_batch_norm_made_is_made_again() -> None:
    """So that a block behind a BatchNorm keeps what that one keeps, unless the input was changed in place since."""
    torch.manual_seed(0)
    stages = [make_stage(4, 4, 3, 1, density=0.5, block=1, affine=True, training=True) for _ in range(2)]
    before = torch.randn(8, 4, 5, 5)
    for changed in (False, True):
        grads = []
        for compute in (residual_block, one_by_one):
            source = layout.to_batch_last(before.clone()).requires_grad_()
            own = [copied(stage, [True] * 3) for stage in stages]
            x = ops.batch_norm(source, None, None, None, None, True, relu=True)
            x = x.mul_(2.0) if changed else x
            kept: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
                compute(x, *own).square().sum().backward()
            assert any(t.data_ptr() == x.data_ptr() for t in kept) is changed
            grads.append([source.grad, *(t.grad for stage in own for t in stage[1:4])])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    def stage(inputs: int, outputs: int) -> ConvNorm:
        return make_stage(inputs, outputs, 3, 1, density=0.5, block=1, affine=True, training=True)

    x, first, second = torch.randn(4, 2, 5, 5), stage(2, 6), stage(6, 2)
    for call, message in [
        ((x.double(), first, second), r"must be torch\.float32"),
        ((x[:, 0, 0], first, second), "4 axes"),
        ((torch.randn(4, 3, 5, 5), first, second), "channels"),
        ((x, first, stage(6, 6)), "shape of the block's result"),
        ((x, first, second, stage(2, 3)), "shape of the block's result"),
        ((x[:1, :, :1, :1], first, second), "more than one value"),
        ((x[:0], first, second), "training needs"),
        ((x, first._replace(values=first.values[1:]), second), "values must have"),
        ((x, first._replace(weight=torch.ones(5)), second), "gamma must have shape"),
        ((x, first, second._replace(bias=torch.ones(2).double())), "beta must be float32"),
        ((x, first._replace(running_mean=torch.ones(1)), second), "running_mean must have shape"),
        ((x, first._replace(num_batches_tracked=torch.tensor(1.0)), second), "must be int64"),
    ]:
        before = first.running_mean.clone()
        with pytest.raises(ConfigError, match=message) as error:
            residual_block(*call)
        assert "\n" not in str(error.value)
        assert torch.equal(first.running_mean, before)


def test_only_what_is_asked_for_is_kept() -> None:
    torch.manual_seed(0)
    first, second = (make_stage(4, 4, 3, 1, density=0.5, block=1, affine=True, training=True) for _ in "12")
    x = layout.to_batch_last(torch.randn(32, 4, 8, 8))
    one, before = x.numel() * 4, arena_bytes()
    # `saved` by autograd: the input; `own`: the result and those of the convolutions
    for wanted, saved, own in [
        ((False, False), 0, 1),
        ((False, True), 0, 3),
        ((True, False), 1, 3),
        ((True, True), 1, 3),
    ]:
        stages = [copied(stage, [wants] * 3) for stage, wants in zip((first, second), wanted, strict=True)]
        y = residual_block(x, *stages)
        assert arena_bytes() - before == own * one
        with torch.no_grad():
            y = residual_block(x, *stages)
        assert y.grad_fn is None
        assert arena_bytes() - before == one
        del y
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.dim()), lambda _: None):
            residual_block(x, *stages)
            assert kept.count(4) == saved
            with torch.no_grad():
                residual_block(x, *stages)
        assert kept.count(4) == saved


def test_temporaries_are_given_back() -> None:
    x = layout.to_batch_last(torch.randn(32, 4, 8, 8)).requires_grad_()
    stages = [make_stage(4, 4, 3, 1, density=0.5, block=1, affine=True, training=True) for _ in range(2)]
    one = x.numel() * 4
    gc.collect()  # what other tests have left
    before = arena_bytes()
    with torch.no_grad():
        y = residual_block(x, *stages)
    assert arena_bytes() - before == one
    y = residual_block(x, *stages)
    assert arena_bytes() - before == 3 * one  # two convolutions and the result
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    del y
    assert arena_bytes() - before == one
    assert gx.shape == x.shape
