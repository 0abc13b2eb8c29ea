"""A fixed mask: exact from the first step on, the same for ever; and which sparsifiers there are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from toys import Bag, Net, blobs, own_loop

from sparcl import Learner, kernels
from sparcl.errors import ConfigError
from sparcl.methods import DERpp, Finetune, Joint
from sparcl.nn import ConvNet, build
from sparcl.nn.layers import SparseLayer
from sparcl.sparsity import SET, SNIP, SPARSIFIERS, TDM, Losses, Pattern, RigL, SparCL, Sparsifier, Static, find
from sparcl.sparsity.patterns import layer_densities
from sparcl.streams import seq_digits

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]


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


def attached(model: nn.Module, seed: int = 0, **options: Any) -> Static:
    return Static(**options).attach(model, torch.optim.SGD(model.parameters(), lr=0.1), seed)


def indices(static: Static) -> list[list[int]]:
    return [layer.index.tolist() for layer in static.layers]


def test_the_seed_decides_a_random_mask_and_the_weights_another() -> None:
    def index(seed: int, first_mask: str) -> list[list[int]]:
        return indices(attached(Net(), seed, sparsity=0.5, first_mask=first_mask))

    assert index(1, "random") == index(1, "random") != index(2, "random")
    assert index(1, "magnitude") == index(2, "magnitude") != index(1, "random")


@pytest.mark.parametrize("block", [1, 4])
def test_given_weights_keep_their_largest(block: int) -> None:
    bag = Bag()
    before = [weight.detach().abs().clone() for weight in bag.weights()]
    static = attached(bag, sparsity=0.75, pattern=Pattern(block), prunable=("conv", "grouped", "linear"))
    for layer, target in zip(static.layers, static.target, strict=True):
        weight = before[[name for name, _ in bag.named_children()].index(layer.name)]
        per_unit = weight.view(weight.shape[0] // block, block, -1).mean(1).flatten()
        assert set(static.active_units(layer).tolist()) == set(per_unit.topk(target).indices.tolist())


def test_equal_weights_are_drawn_not_taken_in_order() -> None:
    """A layer of zeros, as some networks begin with, would keep its first or last channels alone."""
    bag = Bag()
    torch.nn.init.zeros_(bag.linear.weight)
    index = attached(bag, sparsity=0.5, prunable=("linear",)).layers[0].index
    assert len(index) == 42
    assert len(index[index < 42]) == pytest.approx(21, abs=12)


def test_a_trained_network_is_not_destroyed() -> None:
    """By default; the random mask, which was that of everything once, does so."""
    torch.manual_seed(0)
    stream = blobs(2, per_class=100)
    learner = Learner(build("convnet", 4, stream.input_shape, 16), Joint(), lr=0.1, epochs=8)
    for task in stream.merged():
        learner.learn(task)
    trained = copy.deepcopy(learner.model.state_dict())

    def accuracy(sparsity: float = 0.6, **options: Any) -> float:
        model = build("convnet", 4, stream.input_shape, 16)
        model.load_state_dict(trained)
        kept = Learner(model, Finetune(), Static(sparsity, **options), backend="reference")
        class_il = kept.evaluate(stream.tasks).class_il
        assert class_il is not None
        return sum(class_il) / 2

    assert accuracy(sparsity=0.0) > 95.0
    assert accuracy() > 80.0 > accuracy(first_mask="random") + 20.0


def test_at_90_percent_a_trained_convnet_keeps_its_largest_weights_and_most_of_what_it_knows() -> None:
    """SparCL on digits, once running statistics are measured anew; at random they cannot help."""
    torch.manual_seed(0)
    stream = seq_digits()
    dense = build("convnet", 10, stream.input_shape, 32)
    teacher = Learner(copy.deepcopy(dense), Joint(), lr=0.1, epochs=6, drop_last=True, backend="reference")
    for task in stream.merged():
        teacher.learn(task)
    inputs = torch.cat([task.transform.test(task.train.inputs) for task in stream])
    inputs = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))]

    def accuracy(learner: Learner) -> float:
        class_il = learner.evaluate(stream.tasks).class_il
        assert class_il is not None
        return sum(class_il) / len(class_il)

    def sparse(**options: Any) -> float:
        model = copy.deepcopy(dense)
        model.load_state_dict(teacher.model.state_dict())
        learner = Learner(model, DERpp(), SparCL(0.9, **options), backend="reference")
        update_bn(inputs.split(256), learner.model)
        return accuracy(learner)

    assert accuracy(teacher) > 95.0
    assert sparse() > 65.0 > sparse(first_mask="random") + 25.0


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
        ("static", {"first_mask": "largest"}, "unknown first mask 'largest'; allowed: magnitude, random"),
        ("set", {"fraction": 1.5}, "fraction 1.5 is not allowed"),
        ("rigl", {"every": 0}, "RigL interval 0 is not allowed"),
        ("rigl", {"stop": 0.0}, "RigL stop 0.0 is not allowed"),
        ("snip", {"batches": 0}, "batches is 0"),
    ],
)
def test_values_outside_their_range_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SPARSIFIERS[name](**options)


def plain(seed: int) -> nn.Sequential:
    """Without any normalisation."""
    torch.manual_seed(seed)
    convolutions = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.parametrize("first_mask", ["random", "magnitude"])
@pytest.mark.parametrize("kind", [Static, TDM, SET, RigL])
def test_where_no_norm_follows_the_start_keeps_the_outputs_variance(kind: type[Static], first_mask: str) -> None:
    model, dense = plain(0), plain(0)
    kind(0.9, first_mask=first_mask).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(64, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    ratio = float((model[2](x).var() / dense[2](x).var()).detach())
    assert ratio == pytest.approx(1.0, abs=0.1)
    for layer in ("2", "5"):
        a, b = (m.get_submodule(layer).weight.norm() for m in (model, dense))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kind", "share"), [(TDM, 0.1), (SET, 0.3), (RigL, 0.3)])
def test_masks_that_move_keep_it_too_as_what_leaves_is_small_and_newcomers_start_at_0(
    kind: type[TDM] | type[SET] | type[RigL], share: float
) -> None:
    model = plain(0)
    sparsifier = kind(0.9, first_mask="random")
    sparsifier.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = Losses(task=lambda: model(images).square().mean())
    sparsifier.begin_task(0, samples=32, epochs=1, losses=losses)
    sparsifier.begin_epoch(0, 100)
    inputs = {"2": torch.randn(64, 32, 8, 8), "5": torch.randn(4096, 2048)}
    modules = {name: model.get_submodule(name) for name in inputs}
    before = {layer.name: set(layer.index.tolist()) for layer in sparsifier.layers}
    variance = {name: float(modules[name](x).var().detach()) for name, x in inputs.items()}
    sparsifier.update()
    for layer in sparsifier.layers:
        moved = len(before[layer.name] - set(layer.index.tolist()))
        assert moved == pytest.approx(share * len(layer.index), rel=0.02)
        ratio = float(modules[layer.name](inputs[layer.name]).var().detach()) / variance[layer.name]
        assert 0.95 < ratio < 1.005, layer.name


def test_behind_a_norm_weights_stay_as_they_are() -> None:
    net, dense = Net(), Net()
    static = attached(net, sparsity=0.8)
    assert static.scaled == {"conv", "hidden"}
    layer = static.layers[0]
    assert layer.name == "grouped"
    assert torch.equal(layer.gather(layer.parameter), dense.grouped.weight.detach().flatten()[layer.index])


def test_gradients_are_scaled_where_no_norm_follows_and_nowhere_else() -> None:
    for kind in (Static, lambda s: SparCL(s, gradients=0.0)):
        net = Net()
        sparsifier = kind(0.5).attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
        net(torch.randn(8, 2, 6, 6)).square().sum().backward()
        before = {layer.name: layer.gather(layer.parameter.grad).clone() for layer in sparsifier.layers}
        sparsifier.after_backward()
        factors = {"grouped": 1.0, "conv": 2.0, "hidden": 2.0}
        for layer in sparsifier.layers:
            torch.testing.assert_close(layer.gather(layer.parameter.grad), factors[layer.name] * before[layer.name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", ["unstructured", "block"])
@pytest.mark.parametrize("make", [Static, SparCL, RigL, SET, SNIP])
def test_a_second_learner_of_a_sparse_model_keeps_its_largest_weights(
    make: Callable[..., Static], pattern: str, backend: str
) -> None:
    """Also where it is to be sparser or denser than it was: what was zero may be chosen again, but never first."""
    torch.manual_seed(0)
    model, shapes = ConvNet(4, 2, 8), {"backend": backend, "batch_size": 8, "lr": 0.1}
    first = Learner(model, sparsifier=Static(0.9, pattern=pattern), epochs=3, **shapes)
    first.learn(blobs()[0])
    weights = [_dense(layer) for layer in first.sparsifier.layers]
    accuracy = first.evaluate().class_il
    for sparsity in (0.9, 0.5):
        second = Learner(copy.deepcopy(model), sparsifier=make(sparsity, pattern=pattern), **shapes)
        if make is not SNIP:  # whose mask waits for data
            for layer, before in zip(second.sparsifier.layers, weights, strict=True):
                assert torch.equal(_dense(layer), before)
            assert second.evaluate(list(blobs())[:1]).class_il == accuracy
        second.learn(blobs()[0])
        for layer in second.sparsifier.layers:
            kind = second.sparsifier.pattern
            assert len(layer.index) == round((1 - sparsity) * kind.units(layer.shape)) * kind.block
    sparser = Learner(model, sparsifier=Static(0.95, pattern=pattern), **shapes)
    for layer, before in zip(sparser.sparsifier.layers, weights, strict=True):
        assert torch.equal(_dense(layer)[layer.index], before[layer.index])
        score = sparser.sparsifier.pattern.score(before.abs(), None, layer.shape)
        units = sparser.sparsifier.active_units(layer)
        assert score[units].min() >= score.topk(len(units)).values.min() > 0


def _dense(layer: SparseLayer) -> Tensor:
    """[out * in * ...], zero where the mask is."""
    whole = torch.zeros(math.prod(layer.shape))
    whole[layer.index] = layer.gather(layer.parameter).detach()
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("first_mask", ["random", "magnitude"])
def test_without_normalisation_digits_are_learned_within_five_points_of_dense(first_mask: str) -> None:
    def class_il(make: Any) -> float:
        found = []
        for seed in range(3):
            learner = Learner(plain(seed), DERpp(100), make(), lr=0.05, epochs=10, seed=seed, backend="reference")
            for task in seq_digits():
                learner.learn(task)
            accuracy = learner.evaluate().class_il
            assert accuracy is not None
            found.append(sum(accuracy) / len(accuracy))
        return sum(found) / len(found)

    dense = class_il(lambda: None)
    for kind in (Static, SparCL):
        assert class_il(lambda kind=kind: kind(0.9, first_mask=first_mask)) > dense - 5.0
