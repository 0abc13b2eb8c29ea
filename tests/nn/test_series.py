"""Series [N, C, L]: Conv1d with its norm and pooling, native, masked and dense, give the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.native import assert_close, compact, needs_native, random_index
from torch import Tensor, nn

from sparcl import Learner, methods, streams
from sparcl.cost.flops import Ledger
from sparcl.errors import ConfigError
from sparcl.kernels import ops
from sparcl.kernels.layout import is_batch_last
from sparcl.nn import convert, norm_relu, prunable_names
from sparcl.nn.compact import BatchLastConv1d, CompactConv1d, CompactConv2d
from sparcl.nn.dense import dense_model
from sparcl.nn.graph import graph
from sparcl.nn.norm import BatchLastNorm1d, BatchLastNorm2d
from sparcl.sparsity import RigL, SparCL

LENGTH, CHANNELS, CLASSES = 24, 3, 4


class Sensor(nn.Module):
    """Stem, strided, grouped, dilated and depthwise convolutions of a series, each with its norm; classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv1d(CHANNELS, 8, 5, padding="same", bias=False)
        self.norm1 = nn.BatchNorm1d(8)
        self.strided = nn.Conv1d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(16)
        self.grouped = nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=2)
        self.norm3 = nn.BatchNorm1d(16)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16, bias=False)
        self.pool = nn.Sequential(nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.hidden = nn.Linear(16, 12)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        y = norm_relu(self.norm2, self.strided(x))
        x = norm_relu(self.norm3, self.grouped(y), y)
        x = self.pool(self.depthwise(x))
        logits: Tensor = self.classifier(F.relu(self.hidden(x)))
        return logits


PRUNED = ["strided", "grouped", "hidden"]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv1d, Tensor, float]:
    """A convolution whose kernel fits the input once, its input, and a density."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel, dilation, stride = draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 6))
    least = max(dilation * (kernel - 1) + 1 - 2 * padding, 1)
    length = draw(st.integers(least, least + 20))
    sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    torch.manual_seed(draw(st.integers(0, 2**20)))
    channels = groups * draw(st.integers(1, 5)), groups * draw(st.sampled_from((1, 2, 4, 5)))
    layer = nn.Conv1d(*channels, kernel, bias=draw(st.booleans()), **sizes)
    return layer, torch.randn(draw(st.sampled_from((1, 2, 7, 16, 33))), channels[0], length), draw(st.floats(0.1, 1.0))


@needs_native
@pytest.mark.parametrize("block", [1, 2])
@settings(max_examples=80, deadline=None)
@given(case=convolutions())
def test_outputs_and_gradients_are_those_of_conv1d(block: int, case: tuple[nn.Conv1d, Tensor, float]) -> None:
    dense, x, density = case
    shape = tuple(dense.weight.shape)
    block = block if (shape[0] // dense.groups) % block == 0 else 1
    index = random_index(shape, density, torch.Generator().manual_seed(1), block)
    with torch.no_grad():
        mask = torch.zeros(dense.weight.numel())
        mask[index] = 1.0
        dense.weight.mul_(mask.view(shape))
    oracle, native = copy.deepcopy(dense).double(), compact(copy.deepcopy(dense), index)
    assert isinstance(native, CompactConv1d)
    x64, ours = x.double().requires_grad_(), x.clone().requires_grad_()
    want, got = oracle(x64), native(ours)
    assert is_batch_last(got)
    assert_close(got, want)
    direction = torch.randn(want.shape)
    want.backward(direction.double())
    got.backward(direction)
    assert_close(ours.grad, x64.grad)
    if len(index):
        assert_close(native.values.grad, oracle.weight.grad.flatten()[index])
    if dense.bias is not None:
        assert_close(native.bias.grad, oracle.bias.grad)
    assert torch.equal(convert.dense_state_dict(nn.Sequential(native))["0.weight"], dense.weight)
    every = native.dense_gradient(x, direction)
    assert_close(every, oracle.weight.grad)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    batch=st.sampled_from((1, 2, 5, 16, 17)),
    length=st.sampled_from((1, 2, 3, 7, 12)),
    training=st.booleans(),
    relu=st.booleans(),
    residual=st.booleans(),
)
def test_norm_is_batch_norm_1d(batch: int, length: int, training: bool, relu: bool, residual: bool) -> None:
    torch.manual_seed(batch + length)
    oracle = nn.BatchNorm1d(5).double().train(training)
    ours = BatchLastNorm1d.of(nn.BatchNorm1d(5).train(training))
    x, other = torch.randn(batch, 5, length), torch.randn(batch, 5, length) if residual else None
    if training and batch * length == 1:
        with pytest.raises(ConfigError, match="more than one value"):
            ours(x)
        return
    x64, x32 = x.double().requires_grad_(), x.clone().requires_grad_()
    want = oracle(x64) + (0.0 if other is None else other.double())
    want = want.relu() if relu else want
    got = ours(x32, other, relu=relu)
    assert (got.double() - want).abs().max() < 1e-5
    direction = torch.randn(x.shape)
    want.backward(direction.double())
    got.backward(direction)
    if batch * length > 2:  # of two values the gradient is a difference of equals
        assert (x32.grad.double() - x64.grad).abs().max() <= 1e-3 * x64.grad.abs().max() + 1e-5
    assert_close(ours.running_var, oracle.running_var)


@needs_native
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool1d(2),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(3, 2),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(1),
        nn.AdaptiveAvgPool1d(3),
        nn.AdaptiveAvgPool1d(5),
    ],
    ids=repr,
)
def test_pooling(pool: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 3, 1), copy.deepcopy(pool), nn.Flatten())
    native = convert.to_native(model, ["1"])
    assert type(native[2]) is not type(pool)
    x = torch.randn(4, 3, 12)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = native[2](ours), pool(theirs)
    assert_close(got, want)
    direction = torch.randn(want.shape)
    got.backward(direction)
    want.backward(direction)
    assert_close(ours.grad, theirs.grad)


@needs_native
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 4, 2, padding="same"),
        nn.Conv1d(4, 4, 3, stride=65, padding=1),
        nn.MaxPool1d(2, ceil_mode=True),
        nn.MaxPool1d(2, dilation=2),
        nn.AvgPool1d(2, padding=1),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_the_kernels_do_not_know_stays(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), layer, nn.Conv1d(4, 4, 1))
    x = torch.randn(3, 2, 70)
    expected = model(x)
    convert.to_native(model, ["0", "2"])
    assert type(model[1]) is type(layer)
    assert_close(model(x), expected)


@needs_native
def test_a_converted_network_computes_the_same_and_comes_back() -> None:
    model, x = Sensor(), torch.randn(7, CHANNELS, LENGTH)
    assert prunable_names(model) == PRUNED
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    oracle, native = copy.deepcopy(model).double(), convert.to_native(model)
    assert convert.backends(native, PRUNED) == {"native": PRUNED, "reference": []}
    assert [type(native.get_submodule(n)) for n in ("stem", "depthwise")] == [BatchLastConv1d] * 2
    after = convert.dense_state_dict(native)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    labels = torch.arange(7) % CLASSES
    got, want = native(x), oracle(x.double())
    assert_close(got, want)
    F.cross_entropy(got, labels).backward()
    F.cross_entropy(want, labels).backward()
    assert_close(native.strided.values.grad.view(16, 8, 3), oracle.strided.weight.grad)
    assert_close(native.stem.weight.grad, oracle.stem.weight.grad)
    plain = dense_model(native)
    assert {type(m) for m in plain.modules() if not any(m.children())} <= {
        nn.Conv1d,
        nn.BatchNorm1d,
        nn.MaxPool1d,
        nn.AdaptiveAvgPool1d,
        nn.Flatten,
        nn.Linear,
    }
    assert_close(plain(x), oracle.eval()(x.double()))


@needs_native
def test_axes_that_do_not_fit_are_refused_not_taken_for_others() -> None:
    image = compact(nn.Conv2d(3, 3, 1), torch.arange(9))
    series = compact(nn.Conv1d(3, 3, 1), torch.arange(9))
    with pytest.raises(ConfigError, match="4 axes"):
        image(torch.randn(2, 3, 3))
    for x in (torch.randn(2, 3), torch.randn(2, 3, 3, 3)):
        with pytest.raises(ConfigError, match=r"3 axes \[N, C, L\]"):
            series(x)
    with pytest.raises(ConfigError, match="4 axes"):
        BatchLastNorm2d.of(nn.BatchNorm2d(3))(torch.randn(2, 3, 3))
    with pytest.raises(ConfigError, match="pooling needs an input of 3 axes"):
        ops.max_pool(torch.randn(2, 3, 3, 3), (2,))
    with pytest.raises(ConfigError, match="one row"):
        ops.sparse_conv1d(
            torch.randn(2, 3, 3), torch.randn(3), ops.conv_plan(torch.arange(3).int(), (1, 3, 1, 1), padding=(1, 0))
        )
    assert isinstance(image, CompactConv2d)


def series(tasks: int = 2, per_class: int = 12) -> streams.Stream:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2 * tasks, CHANNELS, LENGTH, generator=generator)
    labels = torch.arange(2 * tasks).repeat(per_class)

    def draw() -> Tensor:
        return centres[labels] + 0.5 * torch.randn(len(labels), CHANNELS, LENGTH, generator=generator)

    return streams.from_arrays(draw(), labels, draw(), labels, classes_per_task=2)


def learner(backend: str, **options: Any) -> Learner:
    settings = {"batch_size": 8, "epochs": 2, "lr": 0.05, "seed": 3} | options
    sparsifier = settings.pop("sparsifier", None) or SparCL(0.75)
    return Learner(Sensor(), methods.DERpp(12), sparsifier, backend=backend, **settings)


@needs_native
@pytest.mark.parametrize("sparsifier", [SparCL, RigL])
@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_both_backends_learn_series_alike(sparsifier: Any, pattern: str, tmp_path: Path) -> None:
    stream, made, flops = series(), {}, {}
    for backend in ("reference", "native"):
        made[backend] = learner(backend, sparsifier=sparsifier(0.75, pattern=pattern))
        ledger = Ledger(made[backend].model, made[backend].sparsifier.layers, (CHANNELS, LENGTH))
        made[backend].observers.append(ledger)
        made[backend].learn(stream[0])
        flops[backend] = ledger.executed
    one, other = made["reference"], made["native"]
    assert [layer.name for layer in other.sparsifier.layers] == PRUNED
    assert flops["reference"] == flops["native"] > 0
    for a, b in zip(one.sparsifier.layers, other.sparsifier.layers, strict=True):
        assert torch.equal(a.index, b.index)
        assert (a.gather(a.parameter) - b.gather(b.parameter)).abs().max() < 1e-3
    other.save(tmp_path / "native")
    loaded = Learner.load(tmp_path / "native", Sensor(seed=9), backend="reference")
    assert_close(dense_model(loaded.model)(stream[0].test.inputs), dense_model(other.model)(stream[0].test.inputs))
    loaded.learn(stream[1])
    again = Learner.load(tmp_path / "native", Sensor(seed=9), backend="native")
    again.learn(stream[1])
    assert len(again.evaluate(stream).class_il) == 2


def test_flops_of_series() -> None:
    ledger = Ledger(Sensor(), [], (CHANNELS, LENGTH))
    weights = {"stem": 8 * 3 * 5 * 24, "strided": 16 * 8 * 3 * 12, "grouped": 16 * 8 * 3 * 12, "depthwise": 16 * 3 * 12}
    assert ledger.main.costs.forward == 2 * (sum(weights.values()) + 16 * 12 + 12 * CLASSES)


def test_a_strided_shortcut_and_a_depthwise_layer_stay_dense() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.Conv1d(4, 8, 1, stride=2),
        nn.Conv1d(8, 8, 3, groups=8),
        nn.Conv1d(8, 8, 1),
        nn.Conv1d(8, 2, 1),
    )
    assert prunable_names(model) == ["3"]


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_a_device_refuses_a_series_by_the_name_of_its_layer(native: bool) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ConfigError, match=r"layer 0 is a Conv1d.* that no device can compute"):
        graph(convert.to_native(model, ["2"]) if native else model)
