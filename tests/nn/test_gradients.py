"""Dense gradients: what autograd says of the dense weight, for every kind of layer, whatever holds the weight."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from native import needs_native
from torch import Tensor, nn
from toys import Net

from sparcl.nn.convert import to_native
from sparcl.nn.gradients import dense_gradients
from sparcl.nn.layers import sparse_layers


class Odd(nn.Module):
    """Layers that a formula would get wrong: padding by name or reflection, dilation, one used twice, one unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.same = nn.Conv2d(2, 4, 3, padding="same", dilation=2)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(4, 4, 3, stride=1, padding=1, groups=2)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflect(F.relu(self.same(x)))
        logits: Tensor = self.last(self.twice(F.relu(self.twice(x))).mean((2, 3)))
        return logits


@pytest.mark.parametrize("model", [Net().eval(), Odd()], ids=["net", "odd"])
def test_they_are_autograds_at_every_position_over_all_forward_passes(model: nn.Module) -> None:
    layers = sparse_layers(model, lambda _, module: isinstance(module, nn.Conv2d | nn.Linear))
    for layer in layers[1:]:  # inactive weights at 0 have a gradient as well
        layer.set_index(layer.index[::3])
    x = torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        return model(x[:5]).square().mean() + model(x[5:]).exp().mean()

    parameters = [layer.parameter for layer in layers]
    expected = torch.autograd.grad(loss(), parameters, allow_unused=True)
    found, samples = dense_gradients(model, layers, loss)
    assert samples == 9
    for gradient, reference, parameter in zip(found, expected, parameters, strict=True):
        wanted = torch.zeros_like(parameter) if reference is None else reference
        torch.testing.assert_close(gradient, wanted.flatten(), rtol=1e-4, atol=1e-6)
        assert parameter.grad is None


def test_an_activation_in_place_behind_a_layer_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    expected, _ = dense_gradients(model, sparse_layers(model), lambda: model(x).square().mean())
    model[3] = nn.ReLU(inplace=True)
    found, _ = dense_gradients(model, sparse_layers(model), lambda: model(x).square().mean())
    assert bool(expected[0].any())
    torch.testing.assert_close(found, expected)


def test_a_loss_that_fails_leaves_no_hooks_behind() -> None:
    model = Net()
    layers = sparse_layers(model)
    with pytest.raises(ZeroDivisionError):
        dense_gradients(model, layers, lambda: torch.tensor(1 / 0))
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())


@needs_native
def test_compact_layers_answer_as_the_reference_does() -> None:
    reference = Net()
    native = to_native(copy.deepcopy(reference))
    x = torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (reference, native):
        layers = sparse_layers(model)
        for layer in layers:
            layer.set_index(torch.arange(1, len(layer.index), 4))
        found.append(dense_gradients(model, layers, lambda model=model: model(x).square().mean())[0])
    assert all(layer.parameter.dim() == 1 for layer in layers)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_where_no_layer_was_called_all_gradients_are_zero() -> None:
    """As with stochastic depth, for one batch."""
    model = Odd()
    layers = sparse_layers(model, ["unused"])
    found, samples = dense_gradients(model, layers, lambda: model(torch.randn(5, 2, 6, 6)).square().mean())
    assert samples == 5
    assert torch.equal(found[0], torch.zeros(9))
