"""The fused BatchNorm module against `nn.BatchNorm2d`, `+` and ReLU, in float64."""

from __future__ import annotations

import copy
import pickle
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from nn.native import assert_close, needs_native
from torch import nn

from sparcl.errors import ConfigError
from sparcl.kernels.layout import is_batch_last
from sparcl.nn import convert
from sparcl.nn.dense import dense_model
from sparcl.nn.graph import graph
from sparcl.nn.norm import BatchLastAdaptiveAvgPool2d, BatchLastNorm2d, BatchLastNormAct, norm_relu

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


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: BatchNorm, then a layer that may drop and an activation."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Hardswish(), nn.SiLU(), nn.Identity()], ids=repr)
@pytest.mark.parametrize("watched", [False, True])
def test_a_norm_with_its_activation_is_native_and_comes_back(
    act: nn.Module, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(BatchNormAct2d, "__module__", "timm.layers.norm_act")
    for name in ("timm", "timm.layers", "timm.layers.norm_act"):  # where pickle looks for the class
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
    norm = BatchNormAct2d(8, copy.deepcopy(act))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), norm, nn.Conv2d(8, 4, 3), nn.Flatten())
    x, calls = torch.randn(5, 3, 8, 8), []
    oracle = copy.deepcopy(model).double()
    convert.to_native(model)
    assert isinstance(model[2], BatchLastNormAct)
    assert isinstance(model[2], BatchNormAct2d)
    assert is_batch_last(model[2](torch.ones(5, 8, 6, 6)))
    oracle[2](torch.ones(5, 8, 6, 6).double())
    if watched:
        model[2].act.register_forward_hook(lambda *_: calls.append(1))
    got, want = model(x), oracle(x.double())
    assert len(calls) == watched
    assert (got.double() - want).abs().max() < 1e-4
    got.square().sum().backward()
    want.square().sum().backward()
    gradient = model[2].weight.grad
    assert gradient is not None
    assert (gradient.double() - oracle[2].weight.grad).abs().max() <= 1e-3 * oracle[2].weight.grad.abs().max()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))) if not watched else ():
        assert type(again[2]) is type(model[2])
    plain = dense_model(model)
    assert type(plain[2]) is BatchNormAct2d
    assert (plain(x).double() - oracle.eval()(x.double())).abs().max() < 1e-4
    kind = type(act).__name__
    if watched or kind not in ("ReLU", "Identity"):
        said = "layer 2.act has hooks" if watched else f"layer 2.act is a {kind}("
        with pytest.raises(ConfigError, match=re.escape(said)):
            graph(model, (3, 8, 8))
    else:
        nodes = graph(model, (3, 8, 8))
        assert [(n["op"], n.get("relu")) for n in nodes[2:3]] == [("norm", kind == "ReLU")]
        assert len(nodes) == 5
