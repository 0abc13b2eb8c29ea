"""BatchNorm, pooling and the change of layout against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.kernels import index, layout, ops

pytestmark = pytest.mark.usefixtures("isa")  # each test once for each instruction set
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.tuples(st.sampled_from((1, 7, 12, 32, 33)), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))


def wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double().requires_grad_(x.is_floating_point())


@many
@given(
    shape=shapes,
    training=st.booleans(),
    relu=st.booleans(),
    with_residual=st.booleans(),
    affine=st.booleans(),
    mean=st.sampled_from((0.0, 100.0)),
    seed=st.integers(0, 2**31),
)
def test_batch_norm(
    shape: tuple[int, int, int, int],
    training: bool,
    relu: bool,
    with_residual: bool,
    affine: bool,
    mean: float,
    seed: int,
) -> None:
    if shape[0] * shape[2] * shape[3] < 8:
        shape = (8, *shape[1:])  # the variance of a few values has no stable gradient in any precision
    torch.manual_seed(seed)
    channels = shape[1]
    x = (torch.randn(shape) * 2 + mean).requires_grad_()
    residual = torch.randn(shape, requires_grad=True) if with_residual else None
    weight = torch.randn(channels, requires_grad=True) if affine else None
    bias = torch.randn(channels, requires_grad=True) if affine else None
    running = [torch.randn(channels), torch.rand(channels) + 0.5]
    wide_running = [r.double() for r in running]
    y = ops.batch_norm(x, weight, bias, *running, training, 0.1, 1e-5, residual, relu)
    inputs = [wide(t) for t in (x, residual, weight, bias)]
    want = F.batch_norm(inputs[0], *wide_running, inputs[2], inputs[3], training, 0.1, 1e-5)
    want = want if residual is None else want + inputs[1]
    scale = want.detach().abs().max()  # before the ReLU, which may leave next to nothing
    want = F.relu(want) if relu else want
    assert (y.double() - want).abs().max() <= 1e-4 * scale
    for ours, theirs in zip(running, wide_running, strict=True):
        assert_close(ours, theirs)
    # The sign at the kink of the ReLU may differ by rounding: leave such elements out of the gradient.
    gy = torch.randn(shape) * (want.detach().abs() > 1e-3)
    y.backward(gy)
    want.backward(gy.double())
    for ours, theirs in zip((x, residual, weight, bias), inputs, strict=True):
        if ours is not None:
            # Gradients that cancel are as exact as what cancels: the incoming gradient, or its sum over a channel.
            parts = gy.abs().max() if ours.dim() == 4 else gy.abs().sum() / channels
            error = (ours.grad.double() - theirs.grad).abs().max()
            assert error <= 1e-4 * max(theirs.grad.abs().max(), parts)


def test_batch_norm_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ConfigError, match="more than one value"):
        ops.batch_norm(torch.zeros(1, 3, 1, 1), None, None, None, None, True)
    with pytest.raises(ConfigError, match="residual must have shape"):
        ops.batch_norm(torch.zeros(2, 3, 1, 1), None, None, None, None, True, residual=torch.zeros(2, 3, 2, 1))
    with pytest.raises(ConfigError, match=r"torch.float32, not torch.float64"):
        ops.batch_norm(torch.zeros(2, 3, 1, 1).double(), None, None, None, None, True)


def test_batch_norm_checks_every_tensor_before_it_reads() -> None:
    x, ones = torch.zeros(4, 3, 2, 2), torch.ones(3)
    for weight, bias, mean, var, message in [
        (torch.ones(4), None, ones, ones, r"gamma must have shape \[3\], not \[4\]"),
        (ones.double(), None, ones, ones, "gamma must be float32"),
        (ones, torch.ones(6)[::2], ones, ones, "beta must be contiguous"),
        (ones, ones.to("meta"), ones, ones, "beta must be a torch.Tensor in the memory"),
        (ones, ones, torch.ones(2), ones, "running_mean must have shape"),
        (ones, ones, ones, None, "running_mean and running_var go together"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            ops.batch_norm(x, weight, bias, mean, var, True)
        assert "\n" not in str(error.value)


def test_batch_norm_counts_the_batches_that_it_trains_on() -> None:
    x, tracked = torch.randn(4, 3, 2, 2), torch.tensor(5)
    running = torch.zeros(3), torch.ones(3)
    for training in (True, False, True):
        ops.batch_norm(x, None, None, *running, training, num_batches_tracked=tracked)
    assert int(tracked) == 7
    for other, message in [(torch.tensor(1.0), "must be int64"), (torch.zeros(1, dtype=torch.int64), "no axis")]:
        with pytest.raises(ConfigError, match=message):
            ops.batch_norm(x, None, None, *running, True, num_batches_tracked=other)


def test_batch_norm_of_no_samples_gives_zero_gradients() -> None:
    x, weight, bias = torch.zeros(0, 3, 2, 2, requires_grad=True), *(torch.ones(3, requires_grad=True) for _ in "wb")
    ops.batch_norm(x, weight, bias, torch.zeros(3), torch.ones(3), False, relu=True).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros(3))
    assert torch.equal(bias.grad, torch.zeros(3))


@many
@given(
    shape=shapes,
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pooling(
    shape: tuple[int, int, int, int], size: tuple[int, int], stride: tuple[int, int], pad: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    padding = (size[0] // 2, size[1] // 2) if pad else (0, 0)
    x = torch.randn(shape, requires_grad=True)
    same = wide(x)
    if all(shape[2 + a] + 2 * padding[a] >= size[a] for a in (0, 1)):
        y, want = ops.max_pool(x, size, stride, padding), F.max_pool2d(same, size, stride, padding)
        check_with_gradient(x, same, y, want)
    if shape[2] >= size[0] and shape[3] >= size[1]:
        check_with_gradient(x, same, ops.average_pool(x, size, stride), F.avg_pool2d(same, size, stride))
    check_with_gradient(x, same, ops.adaptive_average_pool(x, (1, 1)), F.adaptive_avg_pool2d(same, (1, 1)))


def check_with_gradient(x: Tensor, same: Tensor, y: Tensor, want: Tensor) -> None:
    assert layout.is_batch_last(y)
    assert_close(y, want)
    gy = torch.randn(y.shape)
    (gx,), (wide_gx,) = torch.autograd.grad(y, x, gy), torch.autograd.grad(want, same, gy.double())
    assert_close(gx, wide_gx)


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 4, 0), (0, 3, 0, 0)])
def test_pooling_refuses_an_input_without_rows_or_columns(shape: tuple[int, int, int, int]) -> None:
    """Its windows hold no cell: the gradient of such a maximum was once written beside the tensor."""
    for pool in (ops.max_pool, ops.average_pool):
        with pytest.raises(ConfigError, match="at least one row and one column"):
            pool(torch.zeros(shape), (2, 2))
    with pytest.raises(ConfigError, match="at least one row and one column"):
        ops.max_pool(torch.zeros(shape), (2, 2), (1, 1), (1, 1))


def test_pooling_refuses_sizes_that_no_int_holds() -> None:
    x = torch.zeros(2, 3, 4, 4)
    for size, stride, padding in [
        ((2**31, 1), (1, 1), (0, 0)),
        ((1, 1), (1, 2**40), (0, 0)),
        ((2, 2), (1, 1), (2**30, 0)),
        ((2**31 - 1, 1), (1, 1), (2**31 - 1, 0)),
    ]:
        with pytest.raises(ConfigError, match="pooling") as error:
            ops.max_pool(x, size, stride, padding)
        assert "\n" not in str(error.value)
    assert torch.equal(ops.max_pool(x, (2**31 - 1, 1), (1, 1), (2**30 - 1, 0)), torch.zeros(2, 3, 4, 4))


def negated(x: Tensor) -> Tensor:
    """-x, of which PyTorch only notes that it is to be negated."""
    y = torch._neg_view(x)
    assert y.is_neg()
    return y


def test_a_tensor_that_is_negated_in_name_only_is_read_as_what_it_is() -> None:
    x, gy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 4, 4)
    assert not layout.is_batch_last(negated(layout.to_batch_last(x)))
    for image in (negated(x), negated(layout.to_batch_last(x)), negated(x.transpose(2, 3)).transpose(2, 3)):
        assert torch.equal(layout.to_batch_last(image), -x)
        leaf = image.detach().requires_grad_()
        y = ops.max_pool(leaf, (2, 2), (1, 1))
        y.backward(negated(gy))
        want = (-x).requires_grad_()
        expected = F.max_pool2d(want, 2, 1)
        expected.backward(-gy)
        assert torch.equal(y, expected)
        assert_close(leaf.grad, want.grad)


def test_a_parameter_that_is_negated_in_name_only_is_refused() -> None:
    x, ones = torch.randn(4, 3, 5, 5), torch.ones(3)
    for vectors in [(negated(ones), ones, None, None), (ones, ones, negated(ones), ones)]:
        with pytest.raises(ConfigError, match=r"has PyTorch's negative bit; give x.resolve_neg\(\)"):
            ops.batch_norm(x, *vectors, True)
    values = torch.randn(9, 3, 1, 1)
    plan = ops.conv_plan(index.index_of(values != 0), (9, 3, 1, 1))
    with pytest.raises(ConfigError, match="values has PyTorch's negative bit"):
        ops.sparse_conv2d(x, negated(values), plan)
    with pytest.raises(ConfigError, match="complex"):
        ops.sparse_conv2d(x.to(torch.complex64).conj(), values, plan)


def test_pooling_refuses_windows_that_do_not_fit() -> None:
    x = torch.zeros(2, 3, 4, 4)
    for size, stride, padding in [((5, 1), (1, 1), (0, 0)), ((2, 2), (1, 1), (2, 0)), ((0, 1), (1, 1), (0, 0))]:
        with pytest.raises(ConfigError, match="pooling"):
            ops.max_pool(x, size, stride, padding)


@many
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_layout(shape: tuple[int, int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    for x in (torch.randn(shape), torch.randn(shape[:2]), torch.randn(shape).transpose(2, 3)):
        y = layout.to_batch_last(x)
        assert layout.is_batch_last(y)
        assert torch.equal(x, y)
        assert torch.equal(layout.from_batch_last(y), x)
        assert layout.to_batch_last(y) is y


def test_strides_of_axes_of_size_one_say_nothing() -> None:
    x = torch.empty(8, 1, 3, 1).as_strided((8, 1, 3, 1), (1, 77, 8, 5))
    assert layout.is_batch_last(x)
    assert not layout.is_batch_last(torch.empty(8, 2, 3, 1))


def test_a_change_of_layout_has_a_gradient() -> None:
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    (layout.to_batch_last(x) * torch.arange(4.0)[:, None, None, None]).sum().backward()
    assert torch.equal(x.grad, torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2))


@many
@given(
    shape=shapes,
    kernel=st.sampled_from((1, 3)),
    stride=st.sampled_from((1, 2)),
    relu=st.booleans(),
    affine=st.booleans(),
    changed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_convolution_behind_a_batch_norm_keeps_no_copy_of_its_input(
    shape: tuple[int, int, int, int], kernel: int, stride: int, relu: bool, affine: bool, changed: bool, seed: int
) -> None:
    """Its weight gradient makes the input again, unless that was changed in place in between."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).requires_grad_()
    weight = torch.randn(4, shape[1], kernel, kernel, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < 0.5
    gamma, beta = (torch.randn(shape[1], generator=generator) if affine else None for _ in range(2))
    running = torch.full((shape[1],), 0.3), torch.full((shape[1],), 1.7)
    positions = index.index_of(weight != 0)
    plan = ops.conv_plan(positions, (4, shape[1], kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
    values = weight.view(-1)[positions.long()].requires_grad_()

    y = ops.batch_norm(x, gamma, beta, *running, False, 0.1, 1e-5, relu=relu)
    wide_x, wide_weight = wide(x), wide(weight)
    want = F.batch_norm(wide_x, running[0].double(), running[1].double(), wide(gamma), wide(beta))
    want = want.relu() if relu else want
    if changed:
        y, want = y.add_(1.0), want + 1.0
    out = ops.sparse_conv2d(y, values, plan)
    want = F.conv2d(want, wide_weight, None, stride, kernel // 2)
    gradient = torch.randn(want.shape, generator=generator)
    out.backward(gradient)
    want.backward(gradient.double())
    assert_close(out, want)
    assert_close(x.grad, wide_x.grad)
    assert_close(values.grad, wide_weight.grad.view(-1)[positions.long()])


@pytest.mark.parametrize("changed", [0, 1, 2], ids=["x", "weight", "bias"])
def test_what_a_batch_norm_read_may_change_in_place_before_a_convolution_reads_its_result(changed: int) -> None:
    """Nothing before the convolution is trained, so PyTorch says nothing: the weight gradient is of what it read."""
    torch.manual_seed(0)
    read = layout.to_batch_last(torch.randn(5, 3, 4, 4)), torch.rand(3) + 0.5, torch.randn(3)
    y = ops.batch_norm(*read, torch.randn(3), torch.rand(3) + 0.5, False, relu=True)
    wide_y = y.double()
    values = torch.randn(4, 3, 3, 3).requires_grad_()
    wide_values = values.detach().double().requires_grad_()
    plan = ops.conv_plan(torch.arange(values.numel(), dtype=torch.int32), (4, 3, 3, 3))
    read[changed].mul_(3.0)
    ops.sparse_conv2d(y, values, plan).square().sum().backward()
    F.conv2d(wide_y, wide_values).square().sum().backward()
    assert_close(values.grad, wide_values.grad)
