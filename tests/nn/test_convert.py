"""Conversion: the same function before and after, dense names and shapes out, and what stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nn.native import assert_close, needs_native
from torch import Tensor, nn
from toys import Net

from sparcl import nn as models
from sparcl.errors import ConfigError
from sparcl.kernels.layout import is_batch_last
from sparcl.nn import convert
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d, CompactLayer, CompactLinear
from sparcl.nn.norm import BatchLastNorm2d

pytestmark = needs_native


def networks() -> list[tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        (models.resnet18(10, 3, width=4), (3, 16, 16)),
        (models.ConvNet(10, 1, width=8), (1, 8, 8)),
        (models.MLP(10, (1, 4, 4), width=12), (1, 4, 4)),
        (Net(), (2, 6, 6)),
    ]


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits in training mode, and each dense parameter's gradient."""
    logits = model(x)
    F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1]).backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("which", range(4), ids=["resnet18", "convnet", "mlp", "a user's own"])
def test_a_converted_model_computes_the_same(which: int) -> None:
    model, shape = networks()[which]
    x = torch.randn(7, *shape)
    oracle = copy.deepcopy(model).double()
    native = convert.to_native(model)
    assert native is model
    logits, gradients = step(native, x)
    logits64, gradients64 = step(oracle, x.double())
    assert logits.is_contiguous()
    assert_close(logits, logits64)
    for name, expected in gradients64.items():
        ours = gradients.get(name)
        if ours is None:
            layer = native.get_submodule(name.rpartition(".")[0])
            assert isinstance(layer, CompactLayer)
            ours = layer.values.grad.view(layer.shape)
        assert (ours.double() - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-6, name
    assert_close(native.eval()(x), oracle.eval()(x.double()))  # the running statistics moved alike


@pytest.mark.parametrize("which", range(4))
def test_a_dense_state_dict_comes_out_as_it_went_in(which: int) -> None:
    model, _ = networks()[which]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = convert.dense_state_dict(convert.to_native(model))
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    networks()[which][0].load_state_dict(after)


def test_inactive_weights_are_zero_in_the_dense_state_dict() -> None:
    model = convert.to_native(models.ConvNet(10, 1, width=8))
    layer = model[3]
    assert isinstance(layer, CompactConv2d)
    layer.set_index(torch.tensor([3, 5, 9]))
    weight = convert.dense_state_dict(model)["3.weight"]
    assert weight.flatten().nonzero().squeeze(1).tolist() == [3, 5, 9]


def test_the_layout_changes_at_the_two_ends_only() -> None:
    model = convert.to_native(models.resnet18(10, 3, width=4))
    seen: list[tuple[str, bool]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | CompactConv2d | BatchLastNorm2d):
            module.register_forward_hook(lambda _, __, o, name=name: seen.append((name, is_batch_last(o))))
    model(torch.randn(6, 3, 16, 16))
    assert len(seen) == 40
    assert all(kept for _, kept in seen)


def test_a_relu_after_a_norm_is_merged() -> None:
    model = convert.to_native(models.ConvNet(10, 1, width=8))
    assert [type(m).__name__ for m in model][:3] == ["BatchLastConv2d", "BatchLastNorm2d", "Identity"]
    assert bool((model[1](model[0](torch.randn(4, 1, 8, 8))) >= 0).all())


def test_kept_parameters_are_the_same_objects() -> None:
    model = models.ConvNet(10, 1, width=8)
    before = dict(model.named_parameters())
    after = dict(convert.to_native(model).named_parameters())
    assert {n for n in after if n in before} == set(before) - {"3.weight", "6.weight", "9.weight"}
    assert all(after[n] is before[n] for n in after if n in before)


def test_a_layer_whose_choice_is_dense_keeps_its_weight() -> None:
    model = convert.to_native(models.ConvNet(10, 1, width=8), choice={"6": "dense"})
    assert isinstance(model[6], BatchLastConv2d)
    assert convert.backends(model, ["3", "6", "9"]) == {"native": ["3", "9"], "reference": ["6"]}


@pytest.mark.parametrize(
    ("choice", "message"), [({"3": "fast"}, "native, dense"), ({"0": "native"}, "prunable: 3, 6, 9")]
)
def test_a_wrong_choice_is_refused(choice: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert.to_native(models.ConvNet(10, 1, width=8), choice=choice)


def test_other_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="float64"):
        convert.to_native(models.ConvNet(10, 1, width=8).double())


class Shared(nn.Module):
    """One layer used under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.tied = nn.Linear(6, 6)
        self.tied_too = nn.Linear(6, 6)
        self.tied_too.weight = self.tied.weight
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.first(x))))
        return self.last(F.relu(self.tied_too(F.relu(self.tied(x)))))


def test_shared_layers_and_weights() -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 6)
    expected = model(x)
    convert.to_native(model, prunable=["first", "tied"])
    assert isinstance(model.first, CompactLinear)
    assert model.again is model.first
    assert type(model.tied) is nn.Linear
    assert_close(model(x), expected)


class Subclass(nn.Conv2d):
    """Computes something else than a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_the_kernels_do_not_know_stays() -> None:
    torch.manual_seed(0)
    hooked = nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda _, __, output: 3 * output)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, padding="same"),
        Subclass(4, 4, 3),
        hooked,
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.MaxPool2d(2),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    x = torch.randn(3, 1, 13, 13)
    expected, kinds = model(x), [type(m) for m in model]
    convert.to_native(model, prunable=["1", "2", "3", "6"])
    assert_close(model(x), expected)
    changed = [i for i, (module, kind) in enumerate(zip(model, kinds, strict=True)) if type(module) is not kind]
    assert changed == [6, 7, 8]


@pytest.mark.parametrize("sizes", [{"stride": 65}, {"padding": 4097}])
def test_sizes_beyond_the_kernels_stay(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, **{"stride": 64, **sizes}), nn.Conv2d(2, 2, 1))
    x = torch.randn(2, 1, 70, 70)
    expected = model(x)
    convert.to_native(model, prunable=["0", "1"])
    assert [type(m) for m in model] == [nn.Conv2d, CompactConv2d]
    assert_close(model(x), expected)


def test_a_copy_of_a_converted_model_is_independent() -> None:
    torch.manual_seed(0)
    model, x = convert.to_native(models.resnet18(10, 3, width=4)).eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(teacher(x), expected)
