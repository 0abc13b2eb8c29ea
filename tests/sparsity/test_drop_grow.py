"""SET and RigL: what is dropped, what is grown, how many, and when."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from toys import Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import SET, Losses, Pattern, RigL
from sparcl.sparsity.drop_grow import DropGrow


def attached(sparsifier: DropGrow, momentum: float = 0.0) -> tuple[Net, torch.optim.Optimizer]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    sparsifier.attach(model, optimizer, seed=2)
    return model, optimizer


def in_epoch(sparsifier: DropGrow, model: Net, epochs: int, steps: int) -> None:
    """The sparsifier inside a task of so many epochs; its losses are means over one fixed batch."""
    task = blobs()[0]
    x, y = task.train.inputs, task.train.labels
    model.eval()
    losses = Losses(task=lambda: torch.nn.functional.cross_entropy(model(x), y))
    sparsifier.begin_task(0, samples=len(y), epochs=epochs, losses=losses)
    sparsifier.begin_epoch(0, steps)


def unit_scores(dense: Tensor, block: int) -> Tensor:
    """Mean over each block of output channels, by unit: [O/G, P] flattened."""
    return dense.reshape(dense.shape[0] // block, block, -1).mean(1).flatten()


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_rigl_grows_the_top_of_the_dense_gradient_outside_the_mask_and_drops_the_smallest(
    sparsity: float, block: int
) -> None:
    rigl = RigL(sparsity, fraction=0.5, pattern=Pattern(block))
    model, _ = attached(rigl)
    in_epoch(rigl, model, epochs=4, steps=10)
    before = [layer.index.clone() for layer in rigl.layers]
    reference = copy.deepcopy(model)
    x, y = blobs()[0].train.inputs, blobs()[0].train.labels
    torch.nn.functional.cross_entropy(reference(x), y).backward()
    magnitudes = [layer.parameter.detach().abs().clone() for layer in rigl.layers]
    rigl.iteration = 10
    rigl.update()
    share = 0.5 / 2 * (1 + math.cos(math.pi * 10 / 30))
    for layer, index, magnitude in zip(rigl.layers, before, magnitudes, strict=True):
        old, new = rigl.pattern.of_index(index, layer.shape), rigl.active_units(layer)
        units = magnitude.numel() // block
        count = min(round(share * len(old)), units - len(old))
        assert count > 0
        dropped, grown = set(old.tolist()) - set(new.tolist()), set(new.tolist()) - set(old.tolist())
        assert len(new) == len(old)
        assert len(dropped) == len(grown) == count
        gradient = reference.get_submodule(layer.name).weight.grad
        score = unit_scores(gradient.abs(), block)
        score[old] = -1.0
        assert grown == set(score.topk(count).indices.tolist())
        size = unit_scores(magnitude, block)
        assert dropped == set(old[size[old].topk(count, largest=False).indices].tolist())


@pytest.mark.parametrize("block", [1, 2])
def test_set_drops_the_smallest_and_grows_as_many_anywhere_else(block: int) -> None:
    chosen = []
    for seed in (0, 1):
        sparsifier = SET(0.5, pattern=Pattern(block))
        model, _ = attached(sparsifier)
        in_epoch(sparsifier, model, epochs=20, steps=4)
        sparsifier.generator.manual_seed(seed)
        before = [layer.index.clone() for layer in sparsifier.layers]
        magnitudes = [layer.parameter.detach().abs().clone() for layer in sparsifier.layers]
        sparsifier.update()
        for layer, index, magnitude in zip(sparsifier.layers, before, magnitudes, strict=True):
            old, new = sparsifier.pattern.of_index(index, layer.shape), sparsifier.active_units(layer)
            dropped, grown = set(old.tolist()) - set(new.tolist()), set(new.tolist()) - set(old.tolist())
            assert len(dropped) == len(grown) == round(0.3 * len(old))
            size = unit_scores(magnitude, block)
            assert dropped == set(old[size[old].topk(len(dropped), largest=False).indices].tolist())
        chosen.append(torch.cat([layer.index for layer in sparsifier.layers]))
    assert not torch.equal(chosen[0], chosen[1])


def test_where_there_is_less_room_than_asked_for_only_so_many_move() -> None:
    sparsifier = SET(0.1, fraction=1.0)
    model, _ = attached(sparsifier)
    in_epoch(sparsifier, model, epochs=20, steps=4)
    before = [set(layer.index.tolist()) for layer in sparsifier.layers]
    sparsifier.update()
    for layer, old in zip(sparsifier.layers, before, strict=True):
        now = set(layer.index.tolist())
        assert len(now) == len(old)
        assert now - old == set(range(layer.parameter.numel())) - old  # all that was unused


def test_a_grown_weight_starts_at_zero_with_fresh_state_and_survivors_keep_theirs() -> None:
    sparsifier = SET(0.5)
    model, optimizer = attached(sparsifier, momentum=0.9)
    own_loop(sparsifier, model, optimizer, blobs(1), epochs=1)
    layer = sparsifier.layers[0]
    old, weight = layer.index.clone(), layer.parameter.detach().clone().flatten()
    momentum = optimizer.state[layer.parameter]["momentum_buffer"].clone().flatten()
    sparsifier.update()
    grown = layer.index[~torch.isin(layer.index, old)]
    stays = layer.index[torch.isin(layer.index, old)]
    now = optimizer.state[layer.parameter]["momentum_buffer"].flatten()
    assert not layer.parameter.detach().flatten()[grown].any()
    assert not now[grown].any()
    assert momentum[stays].count_nonzero() > 0
    assert torch.equal(layer.parameter.detach().flatten()[stays], weight[stays])
    assert torch.equal(now[stays], momentum[stays])


def moments(sparsifier: DropGrow, epochs: int) -> list[int]:
    """The steps of a task of four batches an epoch before which the mask moved."""
    model, optimizer = attached(sparsifier)
    steps: list[int] = []
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    sparsifier.notify = lambda event, _: steps.append(done) if event.endswith(".update") else None
    own_loop(sparsifier, model, optimizer, blobs(1), epochs=epochs, each_step=count)
    assert done == 4 * epochs
    return steps


@pytest.mark.parametrize("epochs", [1, 2, 5, 12])
def test_set_moves_after_every_epoch_but_the_last_however_few_there_are(epochs: int) -> None:
    assert moments(SET(0.5), epochs) == [4 * e for e in range(1, epochs)]
    assert moments(SET(0.0), epochs) == []


def test_rigl_moves_every_so_many_steps_and_not_in_the_last_quarter() -> None:
    assert moments(RigL(0.5, every=4), epochs=12) == [4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert moments(RigL(0.5, every=3), epochs=12) == list(range(3, 37, 3))  # a tenth of the 48 steps would be 4


@pytest.mark.parametrize(("every", "total", "interval"), [(100, 15_600, 100), (100, 500, 50), (30, 500, 30), (7, 5, 1)])
def test_rigls_interval_is_the_published_one_or_a_tenth_of_a_shorter_task(
    every: int, total: int, interval: int
) -> None:
    rigl = RigL(0.5, every=every)
    rigl.total = total
    assert rigl.interval() == interval


def test_rigl_moves_in_a_task_shorter_than_its_interval_too() -> None:
    assert moments(RigL(0.5), epochs=5) == list(range(2, 16, 2))  # 20 steps: every tenth of them, up to step 15
    assert moments(RigL(0.5), epochs=1) == [1, 2, 3]


def spent_at(total: int) -> list[float]:
    """What a budget of seconds tells of each step of an even pace: parts of half a percent (`Budget`)."""
    return [math.floor(200 * step / total) / 200 for step in range(total)]


def driven(rigl: RigL, spent: list[float], first: int = 0) -> list[int]:
    """The steps before which it moves, where moving costs nothing."""
    moved: list[int] = []
    rigl.update = lambda: moved.append(rigl.iteration)  # type: ignore[method-assign]
    for step in range(first, len(spent)):
        rigl.begin_step(step, spent[step])
    return moved


@pytest.mark.parametrize("total", [60, 195, 400, 700, 950, 1499, 3000])
def test_rigl_keeps_its_interval_where_the_length_of_the_task_is_estimated(total: int) -> None:
    rigl = RigL(0.5)
    model, _ = attached(rigl)
    in_epoch(rigl, model, epochs=1, steps=total)
    moved = driven(rigl, spent_at(total))
    known = range(1, int(0.75 * total) + 1)
    interval = min(100, total // 10)
    exactly = [step for step in known if step % interval == 0]
    assert abs(len(moved) - len(exactly)) <= 1
    gaps = [b - a for a, b in zip([0, *moved], moved, strict=False)]
    assert min(gaps) >= 0.85 * interval
    assert max(gaps) <= 1.15 * interval + 1


def test_rigl_goes_on_from_its_last_update() -> None:
    spent, whole = spent_at(700), []
    for stop in (None, 1, 70, 71, 72, 300):
        rigl = RigL(0.5)
        model, _ = attached(rigl)
        in_epoch(rigl, model, epochs=1, steps=700)
        if stop is None:
            whole = driven(rigl, spent)
            continue
        before = driven(rigl, spent[:stop])
        other = RigL(0.5)
        attached(other)
        other.load_state_dict(rigl.state_dict())
        assert before + driven(other, spent, stop) == whole
    exact = {**rigl.state_dict(), "iteration": 71, "total": 700}
    exact.pop("last")  # as 0.2.0 left it
    other.load_state_dict(exact)
    assert other.last == 70


def test_rigl_asks_for_the_dense_gradient_at_its_updates_only_and_says_for_how_many_samples() -> None:
    rigl = RigL(0.5, every=4)
    model, optimizer = attached(rigl)
    events: list[tuple[str, int]] = []
    rigl.notify = lambda event, figures: events.append((event, figures.get("dense_gradient_samples", 0)))
    own_loop(rigl, model, optimizer, blobs(1), epochs=12)
    assert events == [("rigl.gradient", 10), ("rigl.update", 0)] * 9


def test_rigl_leaves_gradients_and_running_statistics_alone() -> None:
    rigl = RigL(0.5)
    model, _ = attached(rigl)
    in_epoch(rigl, model, epochs=4, steps=10)
    model.train()
    buffers = [b.clone() for b in model.buffers()]
    rigl.update()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_the_objective_where_it_is_given_is_what_gradients_are_asked_of() -> None:
    losses = Losses(task=lambda: torch.tensor(1.0), replay=lambda: torch.tensor(2.0))
    assert losses.total() == 3.0
    assert Losses(task=lambda: torch.tensor(1.0)).total() == 1.0
    assert Losses(losses.task, losses.replay, lambda: torch.tensor(5.0)).total() == 5.0


def test_without_losses_rigl_says_what_it_needs() -> None:
    rigl = RigL(0.5)
    attached(rigl)
    with pytest.raises(ConfigError, match="RigL ranks gradients"):
        rigl.update()
