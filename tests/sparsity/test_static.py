"""A fixed random mask: exact from the first step on, the same for ever; and which sparsifiers there are."""

from __future__ import annotations

import pytest
import torch
from toys import Bag, Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import SPARSIFIERS, Pattern, Sparsifier, Static, find
from sparcl.sparsity.patterns import layer_densities


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["static", "set", "rigl"])
def test_every_layer_has_exactly_its_share_before_the_first_step(
    name: str, sparsity: float, block: int, distribution: str
) -> None:
    bag = Bag()
    prunable = ("conv", "grouped", "linear")
    sparsifier = SPARSIFIERS[name](sparsity, pattern=Pattern(block), distribution=distribution, prunable=prunable)
    sparsifier.attach(bag, torch.optim.SGD(bag.parameters(), lr=0.1))
    shapes = [layer.shape for layer in sparsifier.layers]
    densities = layer_densities(shapes, sparsity, distribution)
    assert sparsifier.densities(shapes) == densities
    for layer, density in zip(sparsifier.layers, densities, strict=True):
        units = layer.parameter.numel() // block
        assert len(layer.index) == max(1, round(density * units)) * block
        assert layer.parameter.count_nonzero() == len(layer.index)


def test_it_never_moves_and_what_is_not_prunable_trains() -> None:
    model = Net()
    static = Static(0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    static.attach(model, optimizer, seed=4)
    before = [layer.index.clone() for layer in static.layers]
    weights = [p.detach().clone() for p in model.parameters()]
    own_loop(static, model, optimizer, blobs(), epochs=2)
    for layer, index in zip(static.layers, before, strict=True):
        assert torch.equal(layer.index, index)
        assert layer.parameter.count_nonzero() <= len(index)
    assert all(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_the_seed_decides() -> None:
    def index(seed: int) -> torch.Tensor:
        model = Net()
        static = Static(0.5).attach(model, torch.optim.SGD(model.parameters(), lr=0.1), seed)
        return torch.cat([layer.index for layer in static.layers])

    assert torch.equal(index(1), index(1))
    assert not torch.equal(index(1), index(2))


def test_every_sparsifier_is_found_by_its_name() -> None:
    assert list(SPARSIFIERS) == ["dense", "sparcl", "static", "set", "snip", "rigl"]
    assert find("dense") is Sparsifier
    assert all(find(name).name == name for name in SPARSIFIERS)
    with pytest.raises(ConfigError, match="unknown sparsifier 'lottery'; allowed: dense, sparcl, static"):
        find("lottery")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("static", {"sparsity": 1.0}, "sparsity 1.0 is not allowed"),
        ("static", {"distribution": "even"}, "unknown sparsity distribution 'even'"),
        ("set", {"fraction": 1.5}, "fraction 1.5 is not allowed"),
        ("rigl", {"every": 0}, "RigL interval 0 is not allowed"),
        ("rigl", {"stop": 0.0}, "RigL stop 0.0 is not allowed"),
        ("snip", {"batches": 0}, "batches is 0"),
    ],
)
def test_values_outside_their_range_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SPARSIFIERS[name](**options)
