"""The networks by name: shapes, sizes, and that the prunable layers hold the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.nn import MLP, MODELS, ConvNet, ResNet, build, prunable_names, resnet18


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_a_network_by_name_maps_inputs_to_logits_and_every_weight_learns(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build(name, 7, shape, width=4)
    logits = model(torch.randn(5, *shape))
    assert logits.shape == (5, 7)
    (logits * torch.randn(5, 7)).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None and p.dim() > 1)


def multiply_adds(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Of each convolution and linear layer, for one sample."""
    counted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def count(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                counted[name] = module.weight.numel() * output.numel() // output.shape[1]

            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, *shape))
    return counted


def test_on_digits_the_convnets_prunable_layers_hold_over_95_percent_of_the_flops() -> None:
    model = build("convnet", 10, (1, 8, 8))
    counted = multiply_adds(model, (1, 8, 8))
    share = sum(counted[name] for name in prunable_names(model)) / sum(counted.values())
    assert len(prunable_names(model)) == 3
    assert share > 0.95


def test_the_published_resnet18_has_the_published_size_and_work() -> None:
    model = build("resnet18", 10, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert 2 * sum(multiply_adds(model, (3, 32, 32)).values()) == pytest.approx(1.11e9, rel=5e-3)


def test_the_mlp_is_the_fields() -> None:
    model = build("mlp", 10, (1, 28, 28))
    assert sum(p.numel() for p in model.parameters()) == 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg", 10, (3, 32, 32)), "allowed: auto, resnet18, convnet, mlp"),
        (("convnet", 10, (3, 32, 32), 0), "1 or more"),
        (("resnet18", 10, (5,)), "use mlp"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments: tuple[str, int, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ConvNet(-1), "classes -1 is not allowed for ConvNet; use 1 or more"),
        (lambda: ConvNet(2, 0), "channels 0 is not allowed for ConvNet; use 1 or more"),
        (lambda: ConvNet(2, 1, -4), "width -4 is not allowed for ConvNet; use 1 or more"),
        (lambda: ConvNet(True), "classes True is not allowed for ConvNet; use a whole number"),
        (lambda: MLP(-1, (3,)), "classes -1 is not allowed for MLP"),
        (lambda: MLP(2, (3,), 0), "width 0 is not allowed for MLP"),
        (lambda: MLP(2, ()), r"input shape \(\) is not allowed; use the sizes of a sample, as in \(3, 32, 32\)"),
        (lambda: MLP(2, (-3, -4)), r"input shape \(-3, -4\) is not allowed"),
        (lambda: MLP(2, 5), "input shape 5 is not allowed"),
        (lambda: resnet18(-1), "classes -1 is not allowed for ResNet"),
        (lambda: resnet18(2, 0), "channels 0 is not allowed for ResNet"),
        (lambda: resnet18(2, 3, 0), "width 0 is not allowed for ResNet"),
        (lambda: ResNet((1, 1), 3, 2, 4), r"blocks \(1, 1\) are not allowed for ResNet; use four whole numbers"),
        (lambda: ResNet((1, 1, 1, 0), 3, 2, 4), r"blocks \(1, 1, 1, 0\) are not allowed"),
        (lambda: build("convnet", 2, (0, 8, 8)), "channels 0 is not allowed for ConvNet"),
    ],
)
def test_sizes_that_no_network_has_are_refused_in_one_line(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)
