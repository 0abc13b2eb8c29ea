"""The fused BatchNorm module against `nn.BatchNorm2d`, `+` and ReLU, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nn.native import assert_close, needs_native
from torch import nn

from sparcl.nn.norm import BatchLastAdaptiveAvgPool2d, BatchLastNorm2d, norm_relu

pytestmark = needs_native


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_norm_relu_matches_float64(residual: bool, affine: bool, momentum: float | None) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, affine=affine, momentum=momentum)
    oracle, ours = copy.deepcopy(norm).double(), BatchLastNorm2d.of(norm)
    for _ in range(3):
        x, r = torch.randn(6, 5, 4, 3, requires_grad=True), torch.randn(6, 5, 4, 3, requires_grad=True)
        x64, r64 = x.detach().double().requires_grad_(), r.detach().double().requires_grad_()
        y = norm_relu(ours, x, r if residual else None)
        y64 = norm_relu(oracle, x64, r64 if residual else None)
        gradient = torch.randn(6, 5, 4, 3)
        y.backward(gradient)
        y64.backward(gradient.double())
        assert_close(y, y64)
        assert_close(x.grad, x64.grad)
        if residual:
            assert_close(r.grad, r64.grad)
    for name, expected in oracle.state_dict().items():
        assert_close(ours.state_dict()[name], expected)
    assert_close(ours.eval()(x), oracle.eval()(x64))


def test_without_running_statistics_the_batch_decides_in_eval_too() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, track_running_stats=False).eval()
    x = torch.randn(4, 3, 2, 2)
    assert_close(BatchLastNorm2d.of(norm)(x), norm(x))


@pytest.mark.parametrize("size", [1, (1, 1), (2, 2), (None, 1), 3])
def test_adaptive_pooling(size: int | tuple[int | None, int]) -> None:
    x = torch.randn(5, 4, 6, 8)
    assert_close(BatchLastAdaptiveAvgPool2d(size)(x), F.adaptive_avg_pool2d(x, size))
