"""The sparse convolution and its gradients against torch.nn.functional.conv2d in float64."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case, Expected, assert_close, convolutions, expected
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.kernels import ops

pytestmark = pytest.mark.usefixtures("isa")  # each test once for each instruction set
# The unit is chosen once for a module; Hypothesis need not know.
many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plan_of(case: Case, index: torch.Tensor) -> Any:
    return ops.conv_plan(index, case.weight_shape, case.stride, case.padding, case.dilation, case.groups, case.block)


@many
@given(case=convolutions)
@example(Case(12, 1, 5, 1, (9, 3), (1, 1), (2, 1), (2, 1), (1, 1), 1.0, 1, True, 8711))  # its bias's gradient cancels
def test_outputs_and_gradients(isa: str, case: Case) -> None:
    assert kernels.isa() == isa
    want = expected(case)
    plan = plan_of(case, want.index)
    x, values = want.x.requires_grad_(), want.values.requires_grad_()
    bias = None if want.bias is None else want.bias.requires_grad_()
    y = ops.sparse_conv2d(x, values, plan, bias)
    y.backward(want.gy)
    assert_close(y, want.y)
    assert_close(x.grad, want.gx)
    assert_close(values.grad, want.gvalues)
    if bias is not None:
        assert_close(bias.grad, want.gbias)


@many
@given(case=convolutions, data=st.data())
def test_only_chosen_weights_have_a_gradient_and_only_they_cost(case: Case, data: st.DataObject) -> None:
    want = expected(case)
    plan = plan_of(case, want.index)
    share = data.draw(st.sampled_from((0.0, 0.3, 0.8, 1.0)))
    chosen = torch.rand(len(want.index), generator=torch.Generator().manual_seed(case.seed)) < share
    if data.draw(st.booleans()):  # whole blocks, as a block sparsifier chooses
        chosen = torch.full_like(chosen, share > 0.5)
    plan.set_chosen(chosen.to(torch.uint8))
    positions = want.y.shape[2] * want.y.shape[3]
    for with_input in (False, True):  # a walk of its own, and on the way to the input gradient
        kernels.reset_counters()
        gvalues, gx = gradients(plan, want, with_input)
        assert kernels.counters()["weight_gradient"] == int(chosen.sum()) * positions * case.batch
        assert torch.equal(gvalues[~chosen], torch.zeros(int((~chosen).sum())))
        assert_close(gvalues, want.gvalues * chosen)
        if gx is not None:
            assert_close(gx, want.gx)
    plan.set_chosen(None)
    assert_close(gradients(plan, want, False)[0], want.gvalues)


def gradients(plan: Any, want: Expected, with_input: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    values, x = want.values.clone().requires_grad_(), want.x.clone().requires_grad_(with_input)
    ops.sparse_conv2d(x, values, plan).backward(want.gy)
    assert values.grad is not None
    return values.grad, x.grad


def pass_bits(case: Case, threads: int) -> list[torch.Tensor]:
    want = expected(case)
    torch.set_num_threads(threads)
    plan = plan_of(case, want.index)
    x, values = want.x.requires_grad_(), want.values.requires_grad_()
    y = ops.sparse_conv2d(x, values, plan, want.bias)
    y.backward(want.gy)
    return [y.detach(), x.grad, values.grad]


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("size", "stride"), [((9, 16), (1, 1)), ((8, 8), (2, 2)), ((4, 4), (1, 1)), ((1, 1), (1, 1))])
def test_bits_do_not_depend_on_threads(block: int, size: tuple[int, int], stride: tuple[int, int]) -> None:
    case = Case(33, 1, 40, 48, size, (3, 3), stride, (1, 1), (1, 1), 0.2, block, True, 7)
    one = pass_bits(case, 1)
    for threads in (2, 3, 8):
        assert all(torch.equal(a, b) for a, b in zip(one, pass_bits(case, threads), strict=True))


@pytest.mark.parametrize(("stride", "block"), [(1, 1), (1, 4), (2, 1)])
def test_results_too_large_for_the_caches(stride: int, block: int) -> None:
    """Whole tiles of such results go past the caches (csrc/engine/pass.cpp), those at the edges do not."""
    case = Case(32, 1, 24, 24, (46, 31), (3, 3), (stride, stride), (1, 1), (1, 1), 0.1, block, True, 5)
    want = expected(case)
    y, gx, gvalues = pass_bits(case, 2)
    assert 4 * max(y.numel(), gx.numel()) > 4 << 20
    assert_close(y, want.y)
    assert_close(gx, want.gx)
    assert_close(gvalues, want.gvalues)


@pytest.mark.parametrize("stride", [1, 2])
def test_counters_are_nonzeros_times_positions_times_batch(stride: int) -> None:
    case = Case(12, 1, 20, 24, (9, 7), (3, 3), (stride, stride), (1, 1), (1, 1), 0.3, 1, False, 3)
    want = expected(case)
    kernels.reset_counters()
    x, values = want.x.requires_grad_(), want.values.requires_grad_()
    y = ops.sparse_conv2d(x, values, plan_of(case, want.index))
    forward = len(want.index) * y.shape[2] * y.shape[3] * 12
    assert kernels.counters() == {"forward": forward, "input_gradient": 0, "weight_gradient": 0}
    y.sum().backward()
    counters = kernels.counters()
    assert counters["weight_gradient"] == forward
    # By position of the input: with a stride, each nonzero serves one phase of them.
    rows = [sum((h + 1 - k) % stride == 0 for h in range(9)) for k in range(3)]
    columns = [sum((w + 1 - k) % stride == 0 for w in range(7)) for k in range(3)]
    taps = want.index.long() % 9
    served = sum(rows[int(t) // 3] * columns[int(t) % 3] for t in taps)
    assert counters["input_gradient"] == served * 12


def test_input_gradient_is_not_computed_when_not_needed() -> None:
    case = Case(7, 1, 4, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 0.5, 1, False, 1)
    want = expected(case)
    values = want.values.requires_grad_()
    kernels.reset_counters()
    ops.sparse_conv2d(want.x, values, plan_of(case, want.index)).sum().backward()
    assert kernels.counters()["input_gradient"] == 0
    assert kernels.counters()["weight_gradient"] > 0
    kernels.reset_counters()
    x = want.x.requires_grad_()
    ops.sparse_conv2d(x, want.values.detach(), plan_of(case, want.index)).sum().backward()
    assert kernels.counters()["weight_gradient"] == 0
    with torch.no_grad():
        y = ops.sparse_conv2d(x, values, plan_of(case, want.index))
    assert not y.requires_grad
    assert_close(y, want.y)


def test_twice_in_one_graph_and_inputs_of_any_strides() -> None:
    case = Case(7, 1, 6, 6, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1), 0.4, 1, True, 5)
    want = expected(case)
    plan = plan_of(case, want.index)
    weight = torch.zeros(case.weight_shape, dtype=torch.float64)
    weight.view(-1)[want.index.long()] = want.values.double()
    base = torch.randn(7, 6, 5, 12, generator=torch.Generator().manual_seed(0))
    strided = base.transpose(2, 3)[:, :, ::2]
    results = []
    for x, values, bias, convolve in (
        (strided, want.values, want.bias, lambda x, w, b: ops.sparse_conv2d(x, w, plan, b)),
        (strided.double(), weight, want.bias.double(), lambda x, w, b: F.conv2d(x, w, b, padding=1)),
    ):
        x, values = x.detach().requires_grad_(), values.detach().requires_grad_()
        y = convolve(torch.relu(convolve(x, values, bias)), values, bias)
        y.square().mean(dim=(2, 3)).sum().backward()
        results.append((y, x.grad, values.grad))
    (y, gx, gvalues), (wide_y, wide_gx, gweight) = results
    assert_close(y, wide_y)
    assert_close(gx, wide_gx)
    assert_close(gvalues, gweight.reshape(-1)[want.index.long()])


@given(
    batch=st.sampled_from((0, 1, 7, 16, 33, 128)),
    inputs=st.integers(1, 40),
    out=st.integers(1, 40),
    density=st.sampled_from((0.0, 0.1, 1.0)),
    seed=st.integers(0, 2**31),
)
@many
def test_linear(batch: int, inputs: int, out: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator) * (torch.rand(out, inputs, generator=generator) < density)
    index = weight.reshape(-1).nonzero().reshape(-1).int()
    values = weight.reshape(-1)[index.long()].requires_grad_()
    x = torch.randn(batch, inputs, generator=generator, requires_grad=True)
    wide = weight.double().requires_grad_()
    wide_x = x.detach().double().requires_grad_()
    y = ops.sparse_linear(x, values, ops.linear_plan(index, (out, inputs)))
    wide_y = F.linear(wide_x, wide)
    gy = torch.randn(batch, out, generator=generator)
    y.backward(gy)
    wide_y.backward(gy.double())
    assert_close(y, wide_y)
    assert_close(x.grad, wide_x.grad)
    assert_close(values.grad, wide.grad.reshape(-1)[index.long()])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, 5, 5, dtype=torch.float64), "torch.float32, not torch.float64"),
        (torch.zeros(2, 4, 5, 5, dtype=torch.bfloat16), "torch.float32, not torch.bfloat16"),
        (torch.zeros(2, 3, 5, 5), "x must have 4 channels, it has 3"),
        (torch.zeros(2, 4, 2, 5), "the kernel is larger than the padded input"),
        (torch.zeros(4, 5, 5), "2 axes .N, F. or 4 axes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(x: torch.Tensor, message: str) -> None:
    plan = ops.conv_plan(torch.arange(4 * 9, dtype=torch.int32), (1, 4, 3, 3))
    with pytest.raises(ConfigError, match=message) as error:
        ops.sparse_conv2d(x, torch.zeros(36), plan)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "options", "message"),
    [
        ([1, 1], {}, "ascending"),
        ([3, 2], {}, "ascending"),
        ([-1], {}, "ascending"),
        ([36], {}, "ascending"),
        (list(range(37)), {}, "more entries"),
        ([0], {"block": 4}, "same positions"),
        ([0], {"block": 3}, "block must divide"),
        ([0], {"groups": 3}, "groups must"),
        ([0], {"stride": (0, 1)}, "stride"),
        ([0], {"padding": (-1, 0)}, "padding"),
        ([0], {"dilation": (1, 0)}, "dilation"),
        ([0], {"stride": (1 << 30, 1)}, "stride must be at most 64"),
        ([0], {"padding": (1 << 30, 0)}, "at most 4096"),
        ([0], {"dilation": (1, 1 << 30)}, "at most 4096"),
        ([0], {"padding": (1 << 40, 0)}, "below 2.31"),
    ],
)
def test_plans_that_do_not_fit_are_refused_in_one_line(index: list[int], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ops.conv_plan(torch.tensor(index, dtype=torch.int32), (4, 1, 3, 3), **options)
    assert "\n" not in str(error.value)


def test_a_weight_of_any_shape_has_a_gradient_of_that_shape() -> None:
    plan = ops.conv_plan(torch.arange(18, dtype=torch.int32), (1, 2, 3, 3))
    x, flat = torch.randn(3, 2, 5, 5), torch.randn(18, requires_grad=True)
    weight = flat.detach().view(1, 2, 3, 3).clone().requires_grad_()
    for values in (flat, weight):
        ops.sparse_conv2d(x, values, plan).square().sum().backward()
    assert weight.grad.shape == weight.shape
    assert torch.equal(weight.grad.view(-1), flat.grad)


def batch_last(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape[1:], shape[0]).movedim(-1, 0)


def test_the_module_checks_every_tensor_before_it_reads() -> None:
    plan = ops.conv_plan(torch.arange(18, dtype=torch.int32), (1, 2, 3, 3), padding=(1, 1))
    x, values = batch_last(3, 2, 4, 4), torch.zeros(18)
    for arguments, message in [
        ((x, values[:8], None, 1), "values must have 18 elements, not 8"),
        ((x, torch.zeros(36)[::2], None, 1), "values must be contiguous"),
        ((x, values.double(), None, 1), "values must be float32"),
        ((x, torch.zeros(18, device="meta"), None, 1), "values must be a torch.Tensor in the memory"),
        ((x, [0.0] * 18, None, 1), "values must be a torch.Tensor"),
        ((x, values, torch.zeros(2), 1), r"bias must have shape \[1\]"),
        ((batch_last(3, 1, 4, 4), values, None, 1), "x must have 2 channels"),
        ((x.contiguous(), values, None, 1), "x must lie batch-last"),
        ((batch_last(3, 2, 4, 8)[..., ::2], values, None, 1), "x must lie batch-last"),
        ((x.double(), values, None, 1), "x must be float32"),
        ((batch_last(3, 2, 4, 4).to("meta"), values, None, 1), "x must be a torch.Tensor in the memory"),
        ((x.to_sparse(), values, None, 1), "x must be a torch.Tensor in the memory"),
        ((torch._efficientzerotensor(x.shape), values, None, 1), "x must be a torch.Tensor in the memory"),
        ((x[0, 0, 0], values, None, 1), "two to four axes"),
        ((x[None], values, None, 1), "two to four axes"),
        ((batch_last(3, 2), values, None, 0), "threads"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            plan.forward(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="index must be int32"):
        kernels._native.ConvPlan(torch.zeros(1, dtype=torch.int64), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1)
    for chosen, message in [
        (torch.zeros(8, dtype=torch.uint8), r"chosen must have shape \[18\]"),
        (torch.zeros(18, dtype=torch.bool), "chosen must be uint8"),
        (torch.zeros(36, dtype=torch.uint8)[::2], "chosen must be contiguous"),
        (torch.zeros(1, 18, dtype=torch.uint8), "chosen must have one axis"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan.set_chosen(chosen)


def test_the_module_checks_every_tensor_of_the_backward_pass() -> None:
    plan = ops.conv_plan(torch.arange(18, dtype=torch.int32), (1, 2, 3, 3), padding=(1, 1))
    fits = {
        "gy": batch_last(3, 1, 4, 4),
        "shape": (3, 2, 4, 4),
        "values": torch.zeros(18),
        "x": batch_last(3, 2, 4, 4),
        "gamma": torch.zeros(2),
        "beta": torch.zeros(2),
        "stats": torch.zeros(2, 2),
        "relu": True,
        "want_x": True,
        "want_values": True,
        "want_bias": True,
        "threads": 1,
    }
    gradients = plan.backward(**fits)
    assert [tuple(g.shape) for g in gradients] == [(3, 2, 4, 4), (18,), (1,)]
    assert plan.backward(**{**fits, "want_x": False, "want_values": False, "want_bias": False}) == (None, None, None)
    for change, message in [
        ({"gy": batch_last(3, 1, 4, 5)}, r"gy must have shape \[3, 1, 4, 4\], not \[3, 1, 4, 5\]"),
        ({"gy": batch_last(3, 1, 4, 4).contiguous()}, "gy must lie batch-last"),
        ({"shape": (3, 2, 4, 5)}, "gy must have shape"),
        ({"shape": (3, 2, -4, 4)}, "rows and columns"),
        ({"shape": (3, 2, 4, 4, 1)}, "two to four axes"),
        ({"shape": (4,)}, "two to four axes"),
        ({"x": batch_last(2, 2, 4, 4)}, "x must have shape"),
        ({"x": None}, "needs x"),
        ({"gamma": torch.zeros(3)}, "gamma must have shape"),
        ({"beta": torch.zeros(2).double()}, "beta must be float32"),
        ({"stats": torch.zeros(4)}, "stats must have shape"),
        ({"values": torch.zeros(17)}, "values must have 18 elements"),
        ({"threads": 2000}, "threads"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan.backward(**{**fits, **change})


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    plan = ops.conv_plan(torch.arange(9, dtype=torch.int32), (1, 1, 3, 3))
    x, values = torch.randn(2, 1, 4, 4, requires_grad=True), torch.randn(9, requires_grad=True)
    y = ops.sparse_conv2d(x, values, plan).square().sum()
    (gx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gx.sum().backward()


CHILD = """
import os, signal, sys, torch
from sparcl.kernels import ops
torch.set_num_threads(2)
plan = ops.conv_plan(torch.arange(2304, dtype=torch.int32), (16, 16, 3, 3))
x, values = torch.randn(32, 16, 16, 16), torch.randn(2304)
torch.randn(2_000_000).exp()  # by PyTorch's threads, which no child has
if (child := os.fork()) == 0:
    signal.alarm(30)
    ops.sparse_conv2d(x, values, plan)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes_where_the_parent_had_used_pytorch_alone() -> None:
    """It waited without end for PyTorch's threads, unless the engine, too, had worked before the fork."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr}"
