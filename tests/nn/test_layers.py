"""What is prunable, and one prunable layer on the reference backend."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import PRUNABLE_OF_NET, Net, blobs

from sparcl import Learner
from sparcl.errors import ConfigError
from sparcl.nn import prunable_names, resnet18, sparse_layers
from sparcl.sparsity import TDM, Static


def test_the_published_choice_for_resnet18_is_its_sixteen_block_convolutions() -> None:
    model = resnet18(10)
    names = prunable_names(model)
    assert names == [f"layer{s}.{b}.conv{c}" for s in range(1, 5) for b in range(2) for c in (1, 2)]
    assert sum(model.get_submodule(name).weight.numel() for name in names) == 10_985_472
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def zoo() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8),
            plain=nn.Conv2d(8, 8, 3),
            depthwise=nn.Conv2d(8, 8, 3, groups=8),
            shortcut=nn.Conv2d(8, 16, 1, stride=2),
            point=nn.Conv2d(16, 16, 1),
            grouped=nn.Conv2d(16, 16, 3, stride=2, groups=2),
            hidden=nn.Linear(16, 16),
            last=nn.Linear(16, 2),
        )
    )


def test_by_default_the_first_the_last_shortcuts_and_depthwise_layers_stay_dense() -> None:
    assert prunable_names(zoo()) == ["plain", "point", "grouped", "hidden"]
    assert prunable_names(Net()) == list(PRUNABLE_OF_NET)


def test_the_user_says_which_layers_by_name_pattern_or_predicate() -> None:
    assert prunable_names(zoo(), ["last", "depthwise"]) == ["depthwise", "last"]
    assert prunable_names(zoo(), ("*o*t", "depth*")) == ["depthwise", "shortcut", "point"]
    assert prunable_names(zoo(), lambda _, module: isinstance(module, nn.Linear)) == ["hidden", "last"]
    with pytest.raises(ConfigError, match=r"'conv\*' matches none of: first, plain"):
        prunable_names(zoo(), ["hidden", "conv*"])


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 2)),
    ],
)
def test_a_model_without_prunable_layers_is_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no prunable layer") as caught:
        prunable_names(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no prunable layer"):
        prunable_names(model, lambda *_: False)


def test_an_index_holds_the_rest_at_zero_and_adds_nothing_to_the_state_dict() -> None:
    model = Net()
    keys, before = list(model.state_dict()), model.conv.weight.detach().clone()
    layer = sparse_layers(model)[1]
    assert layer.shape == (8, 8, 3, 3)
    assert torch.equal(layer.index, torch.arange(576))
    layer.set_index(torch.arange(5, 576, 7))
    expected = torch.zeros(576)
    expected[5::7] = before.flatten()[5::7]
    assert torch.equal(model.conv.weight.detach().flatten(), expected)
    assert torch.equal(layer.gather(layer.parameter), before.flatten()[5::7])
    layer.set_index(torch.arange(0, 576, 2))  # those that come back start at zero
    survivors = [i for i in range(5, 576, 7) if i % 2 == 0]
    assert model.conv.weight.detach().flatten().nonzero().squeeze(1).tolist() == survivors
    assert list(model.state_dict()) == keys
    assert layer.parameter is model.conv.weight


def test_the_choice_of_gradients() -> None:
    model = Net()
    layer = sparse_layers(model)[2]
    layer.set_index(torch.tensor([3, 10, 50, 95]))
    assert layer.frozen_entries() is None
    layer.set_chosen(torch.tensor([True, False, True, False]))
    frozen = layer.frozen_entries()
    assert frozen is not None
    assert frozen.tolist() == [10, 95]
    layer.parameter.grad = torch.ones(12, 8)
    layer.mask_gradient()
    assert layer.parameter.grad.flatten().nonzero().squeeze(1).tolist() == [3, 50]
    layer.set_chosen(torch.ones(4, dtype=torch.bool))
    assert layer.chosen is None
    assert layer.frozen_entries() is None
    layer.set_chosen(torch.tensor([True, False, True, True]))
    layer.set_index(torch.tensor([3, 10, 51]))  # a moved mask clears the choice
    assert layer.chosen is None
    model.zero_grad()
    layer.mask_gradient()
    assert layer.parameter.grad is None


def test_a_layer_keeps_one_handle_whoever_asks_and_whatever_name_it_has_there() -> None:
    model = Net()
    assert all(a is b for a, b in zip(sparse_layers(model), sparse_layers(model), strict=True))
    wrapped = nn.Sequential(model)
    TDM(0.5).attach(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1))
    assert [layer.name for layer in sparse_layers(wrapped)] == [f"0.{name}" for name in PRUNABLE_OF_NET]
    assert [len(layer.index) for layer in sparse_layers(model)] == [144, 288, 48]
    assert [layer.name for layer in sparse_layers(model)] == list(PRUNABLE_OF_NET)


def test_a_copy_of_a_masked_model_has_masks_of_its_own() -> None:
    model = Net()
    for layer in sparse_layers(model):
        layer.set_index(torch.arange(0, layer.parameter.numel(), 4))
    twin = copy.deepcopy(model)
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(model(x), twin(x))
    for layer, other in zip(sparse_layers(model), sparse_layers(twin), strict=True):
        assert other is not layer
        assert other.parameter is twin.get_submodule(other.name).weight
        assert torch.equal(other.index, layer.index)
        other.set_index(other.index[:5])
        assert len(layer.index) > 5
    assert not torch.equal(model(x), twin(x))


@pytest.mark.parametrize("name", ["grouped", "conv", "hidden"])
def test_the_dense_gradient_is_that_of_every_position_active_or_not(name: str) -> None:
    model = Net()
    layer = next(la for la in sparse_layers(model) if la.name == name)
    layer.set_index(torch.arange(0, layer.parameter.numel(), 3))
    module = model.get_submodule(name)
    inputs = torch.randn(4, 8) if name == "hidden" else torch.randn(4, 8, 6, 6)
    output = module(inputs)
    upstream = torch.randn_like(output)
    output.backward(upstream)
    expected = layer.parameter.grad
    layer.parameter.grad = None
    torch.testing.assert_close(layer.dense_gradient(inputs, upstream), expected)
    assert layer.parameter.grad is None


def test_a_masked_model_computes_with_the_active_weights_alone() -> None:
    model = Net()
    layer = sparse_layers(model)[2]
    layer.set_index(torch.tensor([0, 9]))
    x = torch.randn(5, 8)
    expected = torch.zeros(5, 12)
    expected[:, 0] = model.hidden.weight[0, 0] * x[:, 0]
    expected[:, 1] = model.hidden.weight[1, 1] * x[:, 1]
    torch.testing.assert_close(F.linear(x, model.hidden.weight), expected)


def test_two_layers_with_one_weight_are_refused() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    model[2].weight = model[1].weight
    with pytest.raises(ConfigError, match="layers 1 and 2 share one weight"):
        sparse_layers(model)
    assert len(sparse_layers(model, ["1"])) == 1


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_weight_that_is_computed_from_others_is_refused_where_it_is_pruned_and_left_elsewhere(norm, backend):
    pruned, elsewhere = Net(), Net()
    pruned.hidden = norm(pruned.hidden)
    elsewhere.stem = norm(elsewhere.stem)
    settings = {"backend": backend, "input_shape": (2, 6, 6), "batch_size": 10}
    with pytest.raises(ConfigError, match="the weight of layer hidden is computed from others: leave it out"):
        Learner(pruned, sparsifier=Static(0.5), **settings)
    learner = Learner(elsewhere, sparsifier=Static(0.5), **settings)
    learner.learn(blobs()[0])


def test_a_frozen_layer_and_a_bare_string_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="list"):
        sparse_layers(model, "1")
    model[1].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="requires_grad"):
        sparse_layers(model)
