"""TDM: exact counts at every phase of a schedule, what leaves, what grows, and what is never touched."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import PRUNABLE_OF_NET, Bag, Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import TDM, Losses, Pattern

ALL = ("*",)
SCHEDULES = [(1, 1), (1, 3), (1, 20), (7, 1), (50, 2)]


def make(sparsity: float, bag: Bag, seed: int = 0, **options: Any) -> TDM:
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.01)
    return TDM(sparsity, prunable=ALL, **{"first_mask": "random", **options}).attach(bag, optimizer, seed)


def counts(tdm: TDM) -> list[int]:
    return [len(layer.index) for layer in tdm.layers]


@pytest.fixture(autouse=True)
def every_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of a few steps, and all their moments."""
    monkeypatch.setattr("sparcl.sparsity.tdm.STEPS_APART", 1)


def update_steps(epochs: int, steps: int) -> set[int]:
    """Global steps at which at least one of the moments 10 %, 20 % ... 80 % has come, the first step excepted."""
    come = [max(1, math.floor(tenth * epochs * steps / 10 + 0.5)) for tenth in range(1, 9)]
    return {step for step in come if step < epochs * steps}


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("sparsity", [0.0, 0.005, 0.015, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_counts_are_exact_at_every_step_of_a_schedule(sparsity: float, block: int, distribution: str) -> None:
    for epochs, steps in SCHEDULES:
        bag = Bag()
        tdm = make(sparsity, bag, pattern=Pattern(block), distribution=distribution, batches=1)
        units = [w.numel() // block for w in bag.weights()]
        target = list(tdm.target)
        if distribution == "uniform":
            assert target == [max(1, round((1 - sparsity) * u)) for u in units]
        moved = [min(round(0.01 * u), t // 5, u - t) for u, t in zip(units, target, strict=True)]
        at_target = [t * block for t in target]
        expanded = [(t + m) * block for t, m in zip(target, moved, strict=True)]
        assert counts(tdm) == at_target  # sparse before the first step

        updates = update_steps(epochs, steps)
        for task in range(3):
            tdm.begin_task(task, samples=8, epochs=epochs, losses=Losses(task=bag.loss, replay=bag.loss))
            expected = expanded if task else at_target
            assert counts(tdm) == expected
            for epoch in range(epochs):
                tdm.begin_epoch(epoch, steps)
                for step in range(steps):
                    tdm.begin_step(step)
                    if epoch * steps + step in updates:
                        expected = at_target
                    assert counts(tdm) == expected, (epochs, steps, task, epoch, step)
            tdm.end_task()
            assert counts(tdm) == at_target
            for layer, weight in zip(tdm.layers, bag.weights(), strict=True):
                inactive = torch.ones(weight.numel(), dtype=torch.bool)
                inactive[layer.index] = False
                assert not weight.detach().flatten()[inactive].any()


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (50, 3, [(e, 0) for e in range(5, 45, 5)]),  # published: epochs 5, 10, ... 40 of 50
        (1, 20, [(0, s) for s in range(2, 18, 2)]),
        (5, 2, [(e, s) for e in range(5) for s in range(2) if 1 <= 2 * e + s <= 8]),
    ],
)
def test_updates_come_every_tenth_of_a_task_and_none_after_nine_tenths(
    epochs: int, steps: int, expected: list[tuple[int, int]]
) -> None:
    bag = Bag()
    tdm = make(0.75, bag, batches=1)
    seen: list[tuple[int, int]] = []
    here = (0, 0)
    tdm.notify = lambda event, _: seen.append(here) if event == "tdm.update" else None
    tdm.begin_task(0, samples=8, epochs=epochs, losses=Losses(task=bag.loss))
    for epoch in range(epochs):
        tdm.begin_epoch(epoch, steps)
        for step in range(steps):
            here = (epoch, step)
            tdm.begin_step(step)
    assert seen == expected


def importance_by_hand(bag: Bag, tdm: TDM, values: Tensor, layer: int, batches: int) -> Tensor:
    """|w| + α·|mean of the task's gradients| + β·|mean of the buffer's|, at every weight of a layer."""
    task = torch.stack([d[layer] for d in bag.directions[:batches]]).mean(0)
    replay = torch.stack([d[layer] for d in bag.directions[batches : 2 * batches]]).mean(0)
    return values.abs() + tdm.alpha * task.abs() + tdm.beta * replay.abs()


@pytest.mark.parametrize("block", [1, 4])
def test_an_update_removes_the_least_important_and_regrows_others_at_value_zero(block: int) -> None:
    bag = Bag()
    tdm = make(0.5, bag, p_intra=0.05, alpha=0.3, beta=0.7, batches=3, pattern=Pattern(block))
    before = [set(layer.index.tolist()) for layer in tdm.layers]
    tdm.begin_task(0, samples=8, epochs=1, losses=Losses(task=bag.loss, replay=bag.loss))
    values = [w.detach().clone() for w in bag.weights()]
    tdm.update()
    assert len(bag.directions) == 6  # three fresh batches of each loss, apart
    for i, (layer, old) in enumerate(zip(tdm.layers, before, strict=True)):
        score = importance_by_hand(bag, tdm, values[i], i, batches=3)
        new = set(layer.index.tolist())
        removed, grown = old - new, new - old
        units = math.prod(layer.shape) // block
        moved = min(round(0.05 * units), round(0.5 * units) // 5, units - round(0.5 * units)) * block
        # a weight removed and grown again would be missing from both sides
        assert len(removed) == len(grown) == moved
        assert not layer.parameter.detach().flatten()[list(grown)].any()
        if removed:
            flat = block_means(score, block).flatten()
            assert float(flat[sorted(removed)].max()) <= float(flat[sorted(old & new)].min())


def block_means(score: Tensor, block: int) -> Tensor:
    """Each weight's score, averaged over the `block` output channels that share its position."""
    grouped = score.reshape(score.shape[0] // block, block, -1)
    return grouped.mean(1, keepdim=True).expand_as(grouped).reshape(score.shape)


def test_an_active_weight_of_value_zero_stays_active_and_trains() -> None:
    bag = Bag()
    tdm = make(0.9, bag, p_intra=0.0, p_inter=0.0)
    layer = tdm.layers[0]
    place = int(layer.index[3])
    with torch.no_grad():
        layer.parameter.view(-1)[place] = 0.0
    tdm.begin_task(0, samples=8, epochs=1, losses=Losses(task=bag.loss))
    for _ in range(3):
        tdm.update()
    assert place in layer.index.tolist()
    bag.loss().backward()
    tdm.after_backward()
    assert layer.parameter.grad is not None
    assert float(layer.parameter.grad.view(-1)[place]) != 0.0
    tdm.optimizer.step()
    assert float(layer.parameter.detach().view(-1)[place]) != 0.0


def test_a_weight_grown_at_zero_survives_an_update_by_its_gradients_alone() -> None:
    bag = Bag()
    tdm = make(0.8, bag, p_inter=0.02)
    tdm.begin_task(1, samples=8, epochs=1)
    layer, weight = tdm.layers[0], bag.conv.weight
    grown = layer.index[weight.detach().flatten()[layer.index] == 0.0]
    assert len(grown) == round(0.02 * weight.numel())
    pull = torch.zeros_like(weight)
    pull.view(-1)[grown] = 100.0
    tdm.losses = Losses(task=lambda: (weight * pull).sum())
    tdm.update()
    assert set(grown.tolist()) <= set(layer.index.tolist())


def test_growth_depends_on_the_generator_only_and_is_uniform() -> None:
    first, other_weights, other_seed = make(0.8, Bag(0)), make(0.8, Bag(1)), make(0.8, Bag(0), seed=1)
    for a, b, c in zip(first.layers, other_weights.layers, other_seed.layers, strict=True):
        assert torch.equal(a.index, b.index)
        assert a.shape == (4, 2) or not torch.equal(a.index, c.index)
    hits = torch.zeros(288)
    bag = Bag()
    for seed in range(400):
        hits[make(0.75, bag, seed=seed).layers[0].index] += 1
    # binomial(400, .25): mean 100, standard deviation 8.7
    assert float((hits - 100).abs().max()) < 5 * 8.7


def test_without_replay_importance_is_of_the_task_and_without_losses_of_the_magnitude() -> None:
    bag = Bag()
    tdm = make(0.5, bag, batches=2)
    weights = [layer.gather(layer.parameter) for layer in tdm.layers]
    for score, w in zip(tdm._cwi(), weights, strict=True):
        assert torch.equal(score, w.abs())
    tdm.begin_task(0, samples=8, epochs=1, losses=Losses(task=bag.loss))
    scores = tdm._cwi()
    for i, (score, w) in enumerate(zip(scores, weights, strict=True)):
        mean = (bag.directions[0][i] + bag.directions[1][i]) / 2
        expected = w.abs() + 0.5 * tdm.layers[i].gather(mean).abs()
        torch.testing.assert_close(score, expected)


def test_nothing_but_prunable_weights_is_ever_masked_and_all_else_trains() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tdm = TDM(0.6).attach(model, optimizer)
    assert [layer.name for layer in tdm.layers] == list(PRUNABLE_OF_NET)
    own_loop(tdm, model, optimizer, blobs(), epochs=3)
    for name, p in model.named_parameters():
        layer, kind = name.rsplit(".", 1)
        if layer in PRUNABLE_OF_NET and kind == "weight":
            assert int((p != 0).sum()) <= round(0.4 * p.numel())
        else:  # BatchNorm's biases, which start at 0, included
            moved = (p.detach() != before[name]).float().mean()
            assert float(moved) > 0.7, name
            assert int((p == 0).sum()) <= 0.3 * p.numel(), name


def test_interrupted_and_resumed_is_uninterrupted() -> None:
    def masks(split: bool) -> list[list[int]]:
        bag = Bag()
        tdm = make(0.8, bag)
        weights = bag.state_dict()
        tdm.begin_task(1, samples=8, epochs=1, losses=Losses(task=bag.loss, replay=bag.loss))
        tdm.begin_epoch(0, 20)
        for step in range(20):
            if split and step == 9:
                state, index = tdm.state_dict(), [layer.index for layer in tdm.layers]
                tdm = make(0.8, bag, seed=99)
                for layer, saved in zip(tdm.layers, index, strict=True):
                    layer.set_index(saved)
                bag.load_state_dict(weights)
                tdm.load_state_dict(state)
                tdm.resume_task(Losses(task=bag.loss, replay=bag.loss))
            tdm.begin_step(step)
            weights = copy.deepcopy(bag.state_dict())
        tdm.end_task()
        return [layer.index.tolist() for layer in tdm.layers]

    assert masks(split=False) == masks(split=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": -0.1}, "0 to 0.99"),
        ({"sparsity": 0.995}, "0 to 0.99"),
        ({"sparsity": float("nan")}, "0 to 0.99"),
        ({"p_intra": 1.5}, "p_intra"),
        ({"p_inter": -0.1}, "p_inter"),
        ({"batches": 0}, "1 or more"),
        ({"distribution": "even"}, "uniform, erk"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TDM(**options)
    assert "\n" not in str(caught.value)


def test_a_block_that_does_not_fit_is_refused_before_anything_changes() -> None:
    model = Net()
    with pytest.raises(ConfigError, match="divisible by 8; layer grouped has 4"):
        TDM(0.9, pattern=Pattern(8)).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert bool((model.conv.weight != 0).all())
