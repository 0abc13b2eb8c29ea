"""Any network whose forward calls what a device can becomes a list of layers that computes the same, or is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import made
import pytest
import torch
import torch.nn.functional as F
from forwards import LeNetLike, TorchvisionLike, WideResNetLike
from torch import Tensor, nn

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.nn import convert
from sparcl.nn.from_graph import GraphNetwork
from sparcl.nn.graph import graph


def trained(model: nn.Module) -> nn.Module:
    """With statistics and scales that are not the first ones."""
    torch.manual_seed(1)
    model(torch.randn(8, *made.SHAPE))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("name", made.MODELS)
def test_the_list_computes_what_the_model_does(name: str) -> None:
    model = trained(made.MODELS[name]()).eval()
    nodes = graph(model, made.SHAPE)
    assert graph(model) == nodes
    listed = GraphNetwork(nodes)
    listed.load_state_dict(model.state_dict())
    x = torch.randn(5, *made.SHAPE)
    assert torch.allclose(listed.eval()(x), model(x), atol=1e-5)
    if kernels.available():
        assert graph(convert.to_native(model), made.SHAPE) == nodes


def test_a_sum_is_the_norm_s_where_one_makes_a_summand() -> None:
    """One pass over memory instead of two; and a ReLU is merged where nobody else reads what lies before it."""
    counts = Counter(node["op"] for node in graph(TorchvisionLike()))
    assert counts == {"convolution": 9, "norm": 8, "max_pool": 1, "global_average": 1, "flatten": 1}
    norms = {node["name"]: node for node in graph(TorchvisionLike()) if node["op"] == "norm"}
    assert all(norms[name]["residual"] >= 0 for name in ("layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2"))
    assert [name for name, node in norms.items() if not node["relu"]] == ["layer2.0.downsample.1"]
    assert Counter(node["op"] for node in graph(WideResNetLike()))["add"] == 3
    assert [node["op"] for node in graph(LeNetLike())] == [
        *("convolution", "relu", "max_pool", "convolution", "relu", "max_pool", "flatten"),
        *("convolution", "relu", "convolution"),
    ]


def test_layers_that_no_device_computes_are_named() -> None:
    shared = nn.Linear(4, 4)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    watched = nn.Sequential(nn.Linear(4, 4))
    watched[0].register_forward_hook(lambda *_: None)
    for model, said in [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), "layer 1 is a Dropout"),
        (nn.Sequential(shared, nn.ReLU(), shared), "layer 0 is computed twice"),
        (tied, "layer 1 shares its weights with layer 0"),
        (watched, "layer 0 has hooks"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 2)), "layer 1 is a Linear on images"),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding="same")), "layer 0 has padding"),
        (nn.Sequential(nn.AvgPool2d(3, padding=1)), "layer 0 is an average with padding"),
        (nn.Sequential(nn.BatchNorm2d(3, affine=False)), "layer 0 is a norm without weights"),
        (nn.Sequential(nn.Flatten(0)), "layer 0 is a Flatten"),
        (nn.LSTM(4, 4), "is a LSTM|returns a|cannot be exported"),
    ]:
        with pytest.raises(ConfigError, match=said) as error:
            graph(model)
        assert "\n" not in str(error.value)
    relu = nn.ReLU()
    assert [n["op"] for n in graph(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu))] == [
        *("convolution", "relu", "convolution", "relu")
    ]


class Own(nn.Module):
    """A convolution, and what a test makes of its result."""

    def __init__(self, forward: Callable[[Own, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.inner = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity()
        self.rest = forward

    def forward(self, x: Tensor) -> Any:
        return self.rest(self, self.conv(x))


REFUSED: dict[str, tuple[Callable[[Own, Tensor], Any], str]] = {
    "a product": (lambda _, x: x * x, r"layer \(the model\) computes mul, .*allowed: Conv2d"),
    "a sum with a number": (lambda _, x: x + 1, "computes add"),
    "a weighted sum": (lambda _, x: torch.add(x, x, alpha=2), "computes add"),
    "a concatenation": (lambda _, x: torch.cat([x, x], 1), "computes cat"),
    "a function of PyTorch": (lambda _, x: F.gelu(x), "computes gelu"),
    "a mean over channels": (lambda _, x: x.mean(1), "computes mean"),
    "a mean over all": (lambda _, x: x.mean(), "computes mean"),
    "another view": (lambda _, x: x.view(x.size(0), 2, -1), "computes view"),
    "a view that mixes samples": (lambda _, x: x.view(-1, x.size(1)), "computes view"),
    "a flatten of everything": (lambda _, x: torch.flatten(x), "is a Flatten"),
    "a padded average": (lambda _, x: F.avg_pool2d(x, 3, 1, 1), "is an average with padding"),
    "a pool of a size that is asked": (lambda _, x: F.max_pool2d(x, x.shape[2]), "computes max_pool2d"),
    "an adaptive average of more than one": (lambda _, x: F.adaptive_avg_pool2d(x, 2), "is a AdaptiveAvgPool2d"),
    "values": (lambda _, x: x if x.sum() > 0 else -x, "cannot be exported as a list of layers: "),
    "two results": (lambda _, x: (x, x), "returns a tuple"),
    "training": (lambda own, x: own.norm(x) if own.training else x, "other layers in training"),
    "a dropout": (lambda own, x: F.dropout(x, 0.5, own.training), "other layers in training|computes dropout"),
    "a weight of its own": (lambda own, x: F.conv2d(x, own.conv.weight), "computes conv2d|computed twice|shares"),
    "an error": (lambda _, x: x.nothing_like_this(), "cannot be exported|computes nothing_like_this"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forward_that_is_no_list_of_layers_is_refused_in_one_line(name: str) -> None:
    forward, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as error:
        graph(Own(forward), (3, 6, 6))
    assert "\n" not in str(error.value)


def test_a_forward_that_a_trace_does_not_show_is_refused() -> None:
    """A result that is overwritten in place, and an average as high as the image, which is not as wide."""

    def in_place(own: Own, x: Tensor) -> Tensor:
        y: Tensor = own.norm(x)
        F.relu_(y)
        return y.mean((2, 3))

    def high(_: Own, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[2]).flatten(1)

    for forward, shape in ((in_place, (3, 6, 6)), (high, (3, 6, 11))):
        with pytest.raises(ConfigError, match="computes something else than the layers that its forward calls"):
            graph(Own(forward), shape)


AVERAGES: tuple[Callable[[Own, Tensor], Tensor], ...] = (
    lambda _, x: F.avg_pool2d(x, x.shape[2]).flatten(1),
    lambda _, x: F.avg_pool2d(x, kernel_size=x.size()[2:]).flatten(start_dim=1),
    lambda _, x: F.avg_pool2d(x, (x.size(-2), x.size(-1))).view(x.shape[0], -1),
    lambda _, x: F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.size()[0], -1),
    lambda _, x: x.mean(dim=(-1, -2), keepdim=True).view(-1, 4),
    lambda _, x: torch.mean(x, [2, 3]),
)


@pytest.mark.parametrize("forward", AVERAGES)
def test_the_ways_to_write_an_average_over_an_image(forward: Callable[[Own, Tensor], Tensor]) -> None:
    assert [node["op"] for node in graph(Own(forward), (3, 6, 6))] == ["convolution", "global_average", "flatten"]


class Two(nn.Module):
    """Takes more than samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, also: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.conv(also)
        return y


def test_inputs_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs also beside samples"):
        graph(Two(), (3, 6, 6))
    with pytest.raises(ConfigError, match=r"does not take samples \[1, 6, 6\]"):
        graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (1, 6, 6))


def test_a_model_is_left_as_it_was() -> None:
    model = made.MODELS["torchvision"]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph(model, made.SHAPE)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
