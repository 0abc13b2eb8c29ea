"""What follows a layer: found in the forward pass, whatever order the model defines its parts in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import PRUNABLE_OF_NET, Net

from sparcl import nn as models
from sparcl.nn.follow import not_normalised
from sparcl.nn.layers import prunable_names


class Backwards(nn.Module):
    """Defined in another order than it is called in."""

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 2)
        self.bare = nn.Conv2d(4, 4, 1)
        self.normed = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(1, 4, 1)
        self.looks = looks

    def forward(self, x: Tensor) -> Tensor:
        if self.looks and float(x.sum()) > 1e9:  # cannot be traced
            return x
        x = self.norm(F.relu(self.normed(F.relu(self.bare(F.relu(self.first(x))))))) + x
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


class PreNorm(nn.Module):
    """A residual branch whose sum is normalised by what comes next, and one whose sum leaves the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer, self.final = (nn.Linear(4, 4) for _ in range(4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(self.first(x))
        x = self.norm(x)
        logits: Tensor = x + self.final(F.layer_norm(self.outer(x), (4,)))
        return logits


def plain() -> nn.Sequential:
    relu = nn.ReLU
    body = (nn.Conv2d(1, 4, 3), relu(), nn.Conv2d(4, 4, 3), relu(), nn.Flatten(), nn.Linear(64, 8), relu())
    return nn.Sequential(*body, nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("make", "bare"),
    [
        (lambda: models.resnet18(10, 3, 4), set()),
        (lambda: models.ConvNet(10, 1, 4), set()),
        (lambda: models.MLP(10, (1, 8, 8)), {"3"}),
        (plain, {"2", "5"}),
        (Net, {"conv", "hidden"}),
    ],
)
def test_of_our_models_and_a_users(make: Callable[[], nn.Module], bare: set[str]) -> None:
    model = make()
    before = torch.get_rng_state()
    assert not_normalised(model, prunable_names(model)) == bare
    assert torch.equal(before, torch.get_rng_state())


def test_the_forward_pass_decides_not_the_order_of_definition() -> None:
    assert not_normalised(Backwards(), ["bare", "normed"]) == {"bare"}
    assert not_normalised(PreNorm(), ["first", "inner", "outer", "final"]) == {"first", "final"}


def test_where_a_model_cannot_be_traced_the_order_of_definition_decides() -> None:
    assert not_normalised(Backwards(looks=True), ["bare", "normed"]) == {"bare", "normed"}
    assert not_normalised(Net(), list(PRUNABLE_OF_NET)) == {"conv", "hidden"}
    module = nn.TransformerEncoderLayer(8, 2, 16)  # of PyTorch's own, which is not looked into
    assert not_normalised(nn.Sequential(nn.Linear(8, 8), module, nn.Linear(8, 2)), ["1.linear1"]) <= {"1.linear1"}
