"""Conversion: the same function before and after, dense names and shapes out, and what stays as it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

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


def test_a_relu_after_a_norm_is_computed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convert.to_native(models.ConvNet(10, 1, width=8)).eval()
    x, called = torch.randn(4, 1, 8, 8), []
    expected = nn.Sequential(*model)(x)  # module by module
    relu = nn.ReLU.forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, y: called.append(self) or relu(self, y))
    assert torch.equal(model(x), expected)
    assert not called
    model[2].register_forward_hook(lambda *_: None)
    assert torch.equal(model(x), expected)
    assert called == [model[2]]


class ResidualBeforeReLU(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[2](x + self[1](self[0](x)))


class Goes(nn.Module):
    """Goes through a sequence as `how` says."""

    def __init__(self, how: Callable[[nn.Sequential, Tensor], Tensor], body: nn.Sequential) -> None:
        super().__init__()
        self.how, self.body = how, body

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body, x)


def sequences() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
    usual = nn.Sequential(conv, norm, nn.ReLU())
    return {
        "a forward of its own": ResidualBeforeReLU(conv, norm, nn.ReLU()),
        "a part of it": Goes(lambda body, x: body[2](x + body[:2](x)), usual),
        "module by module": Goes(lambda body, x: body[2](body[1](body[0](x)) + x), usual),
        "a norm used twice": nn.Sequential(conv, norm, nn.ReLU(), conv, norm),
        "a convolution used twice": nn.Sequential(conv, norm, conv, nn.ReLU()),
        "a ReLU in place": nn.Sequential(conv, norm, nn.ReLU(inplace=True)),
    }


@pytest.mark.parametrize("which", sequences())
def test_whatever_goes_through_a_sequence_computes_the_same(which: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), sequences()[which], nn.Flatten(), nn.Linear(8 * 6 * 6, 4)).eval()
    native = convert.to_native(copy.deepcopy(model))
    assert any(isinstance(module, CompactConv2d) for module in native.modules())
    x = torch.randn(5, 3, 8, 8)
    assert_close(native(x), model(x))


def test_a_sequence_that_merges_is_copied_pickled_and_named_as_before() -> None:
    model = convert.to_native(models.ConvNet(10, 1, width=8)).eval()
    x = torch.randn(4, 1, 8, 8)
    assert isinstance(model, models.ConvNet)
    assert model.recipe() == models.ConvNet(10, 1, width=8).recipe()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(other) is type(model)
        assert torch.equal(other(x), model(x))


class Listed(nn.Module):
    """Calls its layers through a plain list of tuples and a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)
        self.stages = [(self.conv, self.norm)]
        last = self.last
        self.head = lambda x: last(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in self.stages:
            x = norm(conv(x))
        logits: Tensor = self.head(x)
        return logits


def test_a_layer_stays_the_object_it_was() -> None:
    model = Listed()
    model.conv.mark = "the user's"
    before = list(model.modules())
    convert.to_native(model)
    assert all(old is new for old, new in zip(before, model.modules(), strict=True))
    assert isinstance(model.stages[0][0], CompactConv2d)
    assert model.conv.mark == "the user's"
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert model.conv.values.grad is not None


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
