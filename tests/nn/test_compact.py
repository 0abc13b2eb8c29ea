"""Compact layers against torch.nn.functional in float64, and what a sparsifier may do to them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.native import assert_close, compact, needs_native, random_index
from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.nn.compact import CompactConv2d, CompactLinear, shared_block
from sparcl.nn.layers import ELEMENTWISE_OPTIMIZERS, MaskedLayer
from sparcl.nn.norm import BatchLastNorm2d

pytestmark = needs_native

BATCHES = st.sampled_from([0, 1, 7, 12, 32, 33])


def in_float64(layer: CompactConv2d | CompactLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Dense weight, bias, input and result, all in float64 and with gradients."""
    weight = layer.dense_weight().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    x = x.detach().double().requires_grad_()
    if isinstance(layer, CompactConv2d):
        y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        y = F.linear(x, weight, bias)
    return weight, x, y, bias


def strided(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "batch_last":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if layout == "every second":
        return torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2]
    return x


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolution_matches_float64(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]))
    inputs, outputs = groups * data.draw(st.integers(1, 4)), groups * 4 * data.draw(st.integers(1, 2))
    kernel = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
    stride = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)))
    padding = (data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)))
    dilation = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)))
    bias = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    dense = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    density = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    block = data.draw(st.sampled_from([1, 2, 4]))
    layer = compact(dense, random_index(tuple(dense.weight.shape), density, torch.default_generator, block))
    x = torch.randn(data.draw(BATCHES), inputs, data.draw(st.integers(7, 11)), data.draw(st.integers(5, 9)))
    x = strided(x, data.draw(st.sampled_from(["contiguous", "channels_last", "batch_last", "every second"])))
    x = x.detach().requires_grad_()

    y = layer(x)
    weight, x64, y64, bias64 = in_float64(layer, x)
    gradient = torch.randn(y.shape)
    y.backward(gradient)
    y64.backward(gradient.double())

    assert_close(y, y64)
    assert_close(x.grad, x64.grad)
    assert_close(layer.values.grad, weight.grad.flatten()[layer.index])
    if bias64 is not None:
        assert_close(layer.bias.grad, bias64.grad)


@settings(max_examples=30, deadline=None)
@given(
    batch=BATCHES,
    inputs=st.integers(1, 40),
    outputs=st.sampled_from([1, 4, 10, 33]),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    leading=st.booleans(),
)
def test_linear_matches_float64(batch: int, inputs: int, outputs: int, density: float, leading: bool) -> None:
    torch.manual_seed(inputs)
    layer = compact(nn.Linear(inputs, outputs), random_index((outputs, inputs), density, torch.default_generator))
    x = torch.randn(*((2, batch) if leading else (batch,)), inputs, requires_grad=True)
    y = layer(x)
    weight, x64, y64, bias64 = in_float64(layer, x)
    y.square().sum().backward()
    y64.square().sum().backward()
    assert y.is_contiguous()
    assert_close(y, y64)
    assert_close(x.grad, x64.grad)
    assert_close(layer.values.grad, weight.grad.flatten()[layer.index])
    assert_close(layer.bias.grad, bias64.grad)


def conv(density: float = 0.3, seed: int = 0) -> CompactConv2d:
    torch.manual_seed(seed)
    dense = nn.Conv2d(4, 8, 3, padding=1)
    layer = compact(dense, random_index((8, 4, 3, 3), density, torch.default_generator))
    assert isinstance(layer, CompactConv2d)
    return layer


def test_used_twice_in_one_graph_sums_both_gradients() -> None:
    torch.manual_seed(0)
    layer = compact(nn.Conv2d(4, 4, 3, padding=1), random_index((4, 4, 3, 3), 0.4, torch.default_generator))
    x = torch.randn(5, 4, 6, 6)
    weight = layer.dense_weight().double().requires_grad_()
    bias = layer.bias.detach().double()
    twice = F.conv2d(F.conv2d(x.double(), weight, bias, padding=1), weight, bias, padding=1)
    twice.square().sum().backward()
    layer(layer(x)).square().sum().backward()
    assert_close(layer.values.grad, weight.grad.flatten()[layer.index])


def test_no_grad_and_eval_give_the_same_result_without_a_graph() -> None:
    layer, x = conv(), torch.randn(3, 4, 5, 5)
    expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
        assert not layer(x).requires_grad
    assert torch.equal(layer.eval()(x), expected)


def test_an_input_without_gradient_costs_none() -> None:
    from sparcl import kernels

    layer, x = conv(), torch.randn(3, 4, 5, 5)
    kernels.reset_counters()
    layer(x).sum().backward()
    assert kernels.counters()["input_gradient"] == 0
    assert kernels.counters()["weight_gradient"] == len(layer.values) * 3 * 5 * 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_are_refused_in_one_line(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"must be torch\.float32") as refused:
        conv()(torch.ones(2, 4, 5, 5, dtype=dtype))
    assert "\n" not in str(refused.value)


def test_only_chosen_weights_have_a_gradient_and_are_computed() -> None:
    from sparcl import kernels

    layer, x = conv(), torch.randn(6, 4, 5, 5)
    layer(x).square().sum().backward()
    every = layer.values.grad.clone()
    chosen = torch.rand(len(layer.values), generator=torch.Generator().manual_seed(1)) < 0.7
    layer.set_chosen(chosen)
    layer.values.grad = None
    kernels.reset_counters()
    layer(x).square().sum().backward()
    assert torch.equal(layer.values.grad, every.masked_fill(~chosen, 0.0))
    assert kernels.counters()["weight_gradient"] == int(chosen.sum()) * 6 * 5 * 5
    assert torch.equal(layer.frozen_entries(), (~chosen).nonzero().squeeze(1))
    layer.values.grad.fill_(1.0)
    layer.mask_gradient()
    assert torch.equal(layer.values.grad, chosen.float())


def test_the_same_bits_with_one_thread_and_two() -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        layer = conv(0.5)
        x = torch.randn(33, 4, 9, 9, generator=torch.Generator().manual_seed(3), requires_grad=True)
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, layer.values.grad, layer.bias.grad))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def options(kind: type[torch.optim.Optimizer]) -> dict[str, float]:
    return {"lr": 0.1, **({"momentum": 0.9, "weight_decay": 0.01} if kind is torch.optim.SGD else {})}


@pytest.mark.parametrize("kind", ELEMENTWISE_OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_state_follows_its_weight_as_on_the_reference_backend(kind: type[torch.optim.Optimizer]) -> None:
    """The same gradients, growth and removal: the same weights and state as the masked dense layer, at every step."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Conv2d(3, 4, 3)
    masked, layer = MaskedLayer("layer", copy.deepcopy(dense)), CompactConv2d(copy.deepcopy(dense))
    optimizers = [kind([masked.parameter], **options(kind)), kind([layer.values], **options(kind))]
    for density in (0.5, 0.7, 0.2, 1.0):
        index = random_index(layer.shape, density, generator)
        masked.set_index(index, optimizers[0])
        layer.set_index(index, optimizers[1])
        for _ in range(2):
            gradient = torch.randn(layer.shape, generator=generator)
            masked.parameter.grad = gradient.clone()
            masked.mask_gradient()
            layer.values.grad = gradient.flatten()[index].clone()
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(layer.gather(layer.values), masked.gather(masked.parameter))
        for key, state in optimizers[0].state[masked.parameter].items():
            ours = optimizers[1].state[layer.values][key]
            expected = masked.gather(state) if state.shape == layer.shape else state
            assert torch.equal(ours, expected), key


def test_the_parameter_stays_the_same_object_while_an_old_graph_lives() -> None:
    layer, x = conv(), torch.randn(2, 4, 5, 5)
    parameter, loss = layer.values, layer(x).sum()
    loss.backward()
    layer.set_index(torch.arange(0, 288, 7))
    layer(x).sum().backward()
    assert layer.values is parameter
    assert parameter.grad.shape == (len(range(0, 288, 7)),)
    assert loss.requires_grad  # the old graph was alive all the while


def test_a_copy_is_independent() -> None:
    layer, x = conv(), torch.randn(2, 4, 5, 5)
    before = layer(x)
    twin = copy.deepcopy(layer)
    layer.set_index(torch.tensor([0, 5]))
    assert torch.equal(twin(x), before)
    assert len(layer.values) == 2


def test_a_state_dict_brings_its_own_positions() -> None:
    layer, x = conv(0.3), torch.randn(2, 4, 5, 5)
    other = conv(0.6, seed=1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    damaged = {**layer.state_dict(), "weight_index": layer.weight_index.flip(0)}
    with pytest.raises(ConfigError, match="ascending"):
        other.load_state_dict(damaged)


def test_code_that_reads_the_weight_itself_reaches_the_values() -> None:
    layer = CompactLinear(nn.Linear(5, 4))
    layer.set_index(random_index((4, 5), 0.4, torch.default_generator))
    x = torch.randn(7, 5)
    layer.values.data.normal_()
    weight = layer.weight
    assert torch.equal(weight, layer.dense_weight())
    F.linear(x, weight, layer.bias).square().sum().backward()
    through, layer.values.grad = layer.values.grad, None
    layer(x).square().sum().backward()
    assert_close(through, layer.values.grad)


def test_the_default_type_does_not_matter() -> None:
    layer, x = conv(), torch.randn(3, 4, 6, 6)
    expected = layer(x), layer.dense_weight()
    torch.set_default_dtype(torch.float64)
    try:
        norm = BatchLastNorm2d.of(nn.BatchNorm2d(expected[0].shape[1], dtype=torch.float32))
        assert torch.equal(layer(x), expected[0])
        assert torch.equal(layer.dense_weight(), expected[1])
        assert layer.dense_gradient(x, torch.ones_like(expected[0])).dtype == norm(expected[0]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_positions_outside_the_weight_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.\.287"):
        conv().set_index(torch.tensor([3, 288]))


def test_the_dense_gradient_covers_inactive_positions() -> None:
    layer, x = conv(), torch.randn(3, 4, 5, 5)
    weight, _, y64, _ = in_float64(layer, x)
    gradient = torch.randn(3, 8, 5, 5)
    y64.backward(gradient.double())
    assert_close(layer.dense_gradient(x, gradient), weight.grad)


@pytest.mark.parametrize(("block", "found"), [(4, 4), (2, 2), (1, 1)])
def test_blocks_are_seen_in_the_positions(block: int, found: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, 4, 3, 3)
    assert shared_block(random_index(shape, 0.3, generator, block).int(), shape, 1) == found


def test_as_many_positions_in_each_channel_are_no_block_yet() -> None:
    """Channels 0 and 1 share theirs, 2 and 3 only their number: it takes every block of every size."""
    per_channel = [[0, 2], [0, 2], [0, 2], [0, 3]]
    index = torch.tensor([4 * o + p for o, places in enumerate(per_channel) for p in places], dtype=torch.int32)
    assert shared_block(index, (4, 4), 1) == 1
    assert shared_block(index[:4], (2, 4), 1) == 2
    assert shared_block(index[:4], (2, 4), 2) == 1  # a block does not reach from one group into the next
    assert shared_block(index[:0], (4, 4), 1) == 4


def test_same_padding_is_spelled_out() -> None:
    dense = nn.Conv2d(2, 4, 3, padding="same", dilation=2)
    layer, x = CompactConv2d(dense), torch.randn(2, 2, 6, 6)
    assert_close(layer(x), dense(x))
