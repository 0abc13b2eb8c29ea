"""A model cut behind its frozen front: the two parts are the model, and what cannot be cut is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import Net

from sparcl.errors import ConfigError
from sparcl.learner.frozen import Frozen
from sparcl.methods.respond import classifier
from sparcl.nn import MLP, ConvNet, resnet18
from sparcl.nn.front import cut


class Own(nn.Module):
    """Functions between layers, a view by sizes, a classifier that is not called last but one."""

    def __init__(self, forward: Callable[[Own, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 12)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Conv2d(4, 12, 3, padding=1)
        self.last = nn.Linear(12, 4)
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        if self.own is not None:
            return self.own(self, x)
        x = self.pool(F.relu(self.norm(self.stem(x))))
        y = self.body(x).mean((2, 3)).view(x.size(0), -1)
        return self.last(self.head(y))


@pytest.mark.parametrize(
    ("model", "freeze", "shape"),
    [
        (lambda: resnet18(10, width=4), "stem,layer1,layer2", (3, 8, 8)),
        (lambda: resnet18(10, width=4), "stem,layer1,layer3", (3, 8, 8)),
        (lambda: resnet18(10, width=4), "conv1", (3, 8, 8)),
        (lambda: resnet18(10, width=4), "stem,layer1,layer2.0", (3, 8, 8)),
        (lambda: ConvNet(4, 2, 8), "0,1,3,4", (2, 8, 8)),
        (lambda: MLP(4, (2, 8, 8)), "1", (2, 8, 8)),
        (Net, "stem,norm1,grouped", (2, 6, 6)),
        (Own, "stem,norm", (2, 6, 6)),
    ],
)
def test_the_two_parts_are_the_model_with_its_own_layers(
    model: Callable[[], nn.Module], freeze: str, shape: tuple[int, ...]
) -> None:
    whole = model().eval()
    frozen = Frozen(whole, freeze)
    front, rest = cut(whole, frozen.modules())
    x = torch.randn(5, *shape)
    with torch.no_grad():
        latents = front(x)
        assert torch.equal(rest(latents), whole(x))
    assert not latents.requires_grad
    names = [name for name, _ in whole.named_parameters()]
    behind = dict(rest.named_parameters())
    assert list(behind) == [name for name in names if name in behind]  # the same names in the same order
    assert all(behind[name] is p for name, p in whole.named_parameters() if p.requires_grad)
    assert classifier(rest) is classifier(whole)
    assert sum(p.requires_grad for p in front.parameters()) == 0


def test_the_front_takes_the_functions_behind_it_and_stops_at_what_draws() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(16, 4))
    front, rest = cut(model, Frozen(model, "0").modules())
    assert front(torch.zeros(1, 2, 6, 6)).shape == (1, 4, 2, 2)
    assert [type(m) for m in rest.children()] == [nn.Dropout, nn.Flatten, nn.Linear]


def by_value(self: Own, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.last(self.body(x if x.sum() > 0 else -x).mean((2, 3)))


def by_mode(self: Own, x: Tensor) -> Tensor:
    x = F.dropout(self.stem(x), training=self.training)
    return self.last(self.body(x).mean((2, 3)))


def around(self: Own, x: Tensor) -> Tensor:
    y = F.pad(x, (0, 0, 0, 0, 0, 2))
    return self.last(self.body(self.stem(x) + y).mean((2, 3)))


def direct(self: Own, x: Tensor) -> Tensor:
    return self.last(torch.cat([self.body(self.stem(x)), x[:, :0]], 1).mean((2, 3)))


def two(self: Own, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.last(self.body(x).mean((2, 3)) + self.norm(x).mean())


@pytest.mark.parametrize(
    ("forward", "freeze", "said"),
    [
        (by_value, "stem", "cannot be traced"),
        (by_mode, "stem", "another one in training"),
        (two, "stem,norm", "the rest reads 2 results of it"),
        (None, "body", "nothing that is frozen stands at the front"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(forward: Any, freeze: str, said: str) -> None:
    model = Own(forward)
    with pytest.raises(ConfigError, match=said) as caught:
        cut(model, Frozen(model, freeze).modules())
    assert "\n" not in str(caught.value)
    assert model.training


def test_an_input_that_goes_past_the_front_is_refused_or_is_a_function_of_it() -> None:
    model = Own(direct)
    with pytest.raises(ConfigError, match=r"reads the input itself|results"):
        cut(model, Frozen(model, "stem").modules())
    model = Own(around)
    front, rest = cut(model, Frozen(model, "stem").modules())
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(rest(front(x)), model(x))


def test_statistics_of_the_batch_and_hooks_are_refused() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 4)
    )
    with pytest.raises(ConfigError, match="the batch's own statistics"):
        cut(model, Frozen(model, "0,1").modules())
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="hooks"):
        cut(model, Frozen(model, "0").modules())
