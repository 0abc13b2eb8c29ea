"""Frozen and inactive weights under every elementwise optimizer, growth's fresh state, and the moments of a task."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Bag, Net, adam, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.nn.layers import ELEMENTWISE_OPTIMIZERS, elementwise_state
from sparcl.sparsity import DGM, SET, SNIP, TDM, Losses, RigL, SparCL, Sparsifier, Static
from sparcl.sparsity.sparsifier import Moments, draw_free
from sparcl.sparsity.tdm import STEPS_APART, UPDATE_MOMENTS, update_moments, updates_within

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd decay": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    "sgd momentum decay nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd dampening foreach": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, weight_decay=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01, lambd=0.1, t0=0.0, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}
FRESH = {"adagrad": {"sum": 0.1}, "rprop": {"step_size": 0.01}}


def test_every_optimizer_that_is_allowed_is_tested() -> None:
    made = {type(make([nn.Parameter(torch.zeros(1))])) for make in OPTIMIZERS.values()}
    assert made == set(ELEMENTWISE_OPTIMIZERS)


def bits(tensor: Tensor, entries: Tensor) -> Tensor:
    return tensor.detach().flatten()[entries].view(torch.int32)


class Watch:
    """Compares frozen and inactive entries, weights and optimizer state, before and after each step."""

    def __init__(self, sparsifier: TDM | DGM, optimizer: torch.optim.Optimizer, fresh: dict[str, float]) -> None:
        self.layers, self.optimizer, self.fresh = sparsifier.layers, optimizer, fresh
        self.before: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.compared = 0

    def snapshot(self) -> None:
        self.before = []
        for layer in self.layers:
            entries = layer.frozen_entries()
            if entries is None:
                continue
            state = elementwise_state(self.optimizer, layer.parameter)
            kept = {key: bits(tensor, entries) for key, tensor in state.items()}
            self.before.append((bits(layer.parameter, entries), kept))

    def compare(self) -> None:
        for layer, (values, state) in zip(self.layers, self.before, strict=bool(self.before)):
            entries = layer.frozen_entries()
            assert entries is not None
            assert torch.equal(bits(layer.parameter, entries), values)
            now = elementwise_state(self.optimizer, layer.parameter)
            for key, tensor in now.items():
                fresh = torch.full((len(entries),), self.fresh.get(key, 0.0)).view(torch.int32)
                assert torch.equal(bits(tensor, entries), state.get(key, fresh)), key
                self.compared += len(entries)
        for layer in self.layers:
            inactive = torch.ones(layer.parameter.numel(), dtype=torch.bool)
            inactive[layer.index] = False
            assert not layer.parameter.detach().flatten()[inactive].any()
            for key, tensor in elementwise_state(self.optimizer, layer.parameter).items():
                flat = tensor.flatten()[inactive]  # Adamax adds its eps of 1e-8 to what it keeps of a zero gradient
                torch.testing.assert_close(flat, torch.full_like(flat, self.fresh.get(key, 0.0)), atol=2e-8, rtol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_and_their_state_stay_bit_for_bit_and_inactive_ones_fresh(name: str) -> None:
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    tdm = TDM(0.6, p_inter=0.1, p_intra=0.1).attach(model, optimizer)
    dgm = DGM(0.4, interval=7).attach(model, optimizer)
    watch = Watch(dgm, optimizer, FRESH.get(name, {}))

    class Both(Sparsifier):
        """TDM and DGM attached one by one, as a user would."""

        def begin_task(self, index: int, **about: Any) -> None:
            tdm.begin_task(index, **about)
            dgm.begin_task(index, **about)

        def begin_epoch(self, epoch: int, steps: int) -> None:
            tdm.begin_epoch(epoch, steps)

        def begin_step(self, step: int) -> None:
            tdm.begin_step(step)
            dgm.begin_step(step)
            watch.snapshot()

        def after_backward(self) -> None:
            tdm.after_backward()
            dgm.after_backward()

        def after_step(self) -> None:
            tdm.after_step()
            dgm.after_step()

        def end_task(self) -> None:
            tdm.end_task()
            dgm.end_task()

    chosen = [layer.parameter.detach().clone() for layer in dgm.layers]
    own_loop(Both(), model, optimizer, blobs(), epochs=5, each_step=watch.compare)
    assert all(len(layer.index) == round(0.4 * layer.parameter.numel()) for layer in tdm.layers)
    for layer, start in zip(dgm.layers, chosen, strict=True):
        assert int((layer.gather(layer.parameter) != layer.gather(start)).sum()) > 0.5 * len(layer.index)
    if name not in ("sgd", "sgd decay"):  # plain SGD has no state
        assert watch.compared > 1000


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_survivors_keep_their_state_and_grown_weights_start_fresh(name: str) -> None:
    bag = Bag()
    optimizer = OPTIMIZERS[name](bag.parameters())
    tdm = TDM(0.5, p_intra=0.1, p_inter=0.1, prunable=("*",)).attach(bag, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        bag.loss().backward()
        tdm.after_backward()
        optimizer.step()
        tdm.after_step()
    fresh = FRESH.get(name, {})
    for change in (
        lambda: tdm.begin_task(1, samples=8, epochs=1, losses=Losses(task=bag.loss)),
        tdm.update,
        tdm.update,
        tdm.end_task,
    ):
        old = [
            (layer.index, layer.parameter.detach().clone(), clone(elementwise_state(optimizer, layer.parameter)))
            for layer in tdm.layers
        ]
        change()
        for layer, (index, weight, state) in zip(tdm.layers, old, strict=True):
            survives = torch.zeros(weight.numel(), dtype=torch.bool)
            survives[layer.index] = True
            survives &= torch.isin(torch.arange(weight.numel()), index)
            flat = layer.parameter.detach().flatten()
            assert torch.equal(flat[survives], weight.flatten()[survives])
            assert not flat[~survives].any()
            now = elementwise_state(optimizer, layer.parameter)
            assert now.keys() == state.keys()
            for key, tensor in now.items():
                assert torch.equal(tensor.flatten()[survives], state[key].flatten()[survives])
                rest = tensor.flatten()[~survives]
                assert torch.equal(rest, torch.full_like(rest, fresh.get(key, 0.0))), key


def clone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in state.items()}


class Mixing(torch.optim.Optimizer):
    """An optimizer that is not known to be elementwise."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [torch.optim.LBFGS, torch.optim.Adafactor, lambda p: torch.optim.Muon([q for q in p if q.dim() == 2]), Mixing],
)
@pytest.mark.parametrize("part", [TDM, DGM])
def test_an_optimizer_that_mixes_weights_is_refused_in_one_line(make: Make, part: type[TDM | DGM]) -> None:
    model = Net()
    with pytest.raises(ConfigError, match=r"use one of: SGD, Adam, AdamW") as caught:
        part().attach(model, make(model.parameters()))
    assert "\n" not in str(caught.value)
    assert bool((model.conv.weight != 0).all())


@pytest.mark.parametrize("make", [lambda: Static(0.5), lambda: SparCL(0.75), lambda: TDM(0.75), lambda: DGM(0.2)])
def test_a_sparsifier_of_another_learner_is_refused(make: Callable[[], Sparsifier]) -> None:
    model = Net()
    sparsifier = make().attach(model, torch.optim.SGD(model.parameters(), 0.1))
    other = Net()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ConfigError, match=f"this {sparsifier.name} belongs to another Learner"):
        sparsifier.attach(other, torch.optim.SGD(other.parameters(), 0.1))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_an_optimizer_of_other_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not hold the weight of layer grouped"):
        TDM().attach(Net(), torch.optim.SGD(Net().parameters(), lr=0.1))


@pytest.mark.parametrize("epochs", [1, 2, 7, 50, 100])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 31])
def test_every_moment_comes_once_in_order_and_never_early(epochs: int, steps: int) -> None:
    fractions = (0.1, 0.2, 0.3, 0.4, 0.8)
    moments = Moments(fractions)
    moments.begin_task(epochs)
    seen: list[float] = []
    for epoch in range(epochs):
        moments.begin_epoch(epoch, steps)
        for step in range(steps):
            for _ in range(moments.due(step)):
                seen.append(epoch + step / steps)
            assert moments.due(step) == 0
    length = epochs * steps
    assert len(seen) == sum(1 for f in fractions if f * length < length - 0.5 and length > 1)
    for fraction, at in zip(fractions, seen, strict=False):
        if round(fraction * length) >= 1:
            assert abs(at - fraction * epochs) <= 0.5 / steps + 1e-9
        else:
            assert at * steps == pytest.approx(1)  # at the second step: the first is always trained before


def test_moments_that_a_shortened_epoch_did_not_reach_are_due_at_the_next_step() -> None:
    moments = Moments((0.1, 0.2, 0.3))
    moments.begin_task(10)
    moments.begin_epoch(0, 5)
    assert moments.due(1) == 0
    moments.begin_epoch(2, 5)
    assert moments.due(0) == 2
    moments.begin_epoch(3, 5)
    assert moments.due(0) == 1


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 25, 49, 50, 99, 100, 101, 640, 15600])
def test_mask_updates_are_some_steps_apart_however_short_the_task(steps: int) -> None:
    for spent in (False, True):
        moments = update_moments()
        moments.begin_task(1)
        moments.begin_epoch(0, steps)
        due, near = [], []
        for step in range(steps):
            share = (step + 0.5) / steps if spent else None
            due += [step] if moments.due(step, share) else []
            near += [step] if moments.near(step, 1, share) else []
        assert all(b - a >= STEPS_APART for a, b in itertools.pairwise([-1, *due]))
        assert [step + 1 for step in near if step + 1 < steps] == due
        assert len(due) == updates_within(steps)
        if steps >= 100:
            assert len(due) == len(UPDATE_MOMENTS)
            assert all(abs(at / steps - f) <= 1 / steps for at, f in zip(due, UPDATE_MOMENTS, strict=True))
        assert due or steps <= STEPS_APART + 1
        assert all((at + 0.5) / steps < 0.9 for at in due)


def test_the_dense_sparsifier_changes_nothing() -> None:
    model, plain = Net(), Net()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    dense = Sparsifier().attach(model, optimizer)
    assert torch.equal(dense.keep(torch.arange(5)), torch.arange(5))
    assert dense.densities([(8, 3), (2, 8)]) == [1.0, 1.0]
    assert own_loop(dense, model, optimizer, blobs(), epochs=2) == own_loop(
        Sparsifier(), plain, other, blobs(), epochs=2
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "taken", "count"), [(12, 4, 2), (12, 9, 2), (12, 4, 6), (12, 0, 12), (12, 12, 3), (12, 4, 0)]
)
def test_newcomers_are_free_different_exact_and_drawn_evenly(size: int, taken: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    free = torch.ones(size, dtype=torch.bool)
    free[torch.randperm(size, generator=generator)[:taken]] = False
    drawn, together, draws = torch.zeros(size), torch.zeros(size, size), 4000
    for _ in range(draws):
        positions = draw_free(free, int(free.sum()), count, generator)
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert len(positions) == min(count, size - taken)
        drawn[positions] += 1
        together[positions[:, None], positions] += 1
    assert not drawn[~free].any()
    n, k = size - taken, min(count, size - taken)
    if 0 < k < n:
        expected = draws * k / n
        assert (drawn[free] - expected).abs().max() < 5 * (expected * (1 - k / n)) ** 0.5
        pairs = together[free][:, free][~torch.eye(n, dtype=torch.bool)]
        share = k * (k - 1) / (n * (n - 1))
        assert (pairs - draws * share).abs().max() < 5 * (draws * share * (1 - share)) ** 0.5


def test_growth_draws_what_it_needs_and_no_permutation_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int, **_: object) -> None:
        raise AssertionError(f"all {size} positions were permuted")

    monkeypatch.setattr(torch, "randperm", refuse)
    positions = draw_free(torch.ones(1 << 20, dtype=torch.bool), 1 << 20, 1000, torch.Generator().manual_seed(0))
    assert len(positions.unique()) == 1000


@pytest.mark.parametrize(("epochs", "steps"), [(1, 10), (1, 3), (7, 4), (50, 2)])
def test_a_moment_is_near_just_before_it_is_due(epochs: int, steps: int) -> None:
    moments = Moments(UPDATE_MOMENTS)
    moments.begin_task(epochs)
    due, near = [], []
    for epoch in range(epochs):
        moments.begin_epoch(epoch, steps)
        for step in range(steps):
            due.append(bool(moments.due(step)))
            near.append([moments.near(step, window) for window in (1, 4)])
    assert any(due)
    for i, answers in enumerate(near):
        for window, answer in zip((1, 4), answers, strict=True):
            assert answer == any(due[i + 1 : i + 1 + window])


@pytest.mark.parametrize("make", [SparCL, TDM, DGM, Static, SET, RigL, SNIP])
def test_a_sparsifier_that_was_never_attached_says_so(make: Callable[[], Sparsifier]) -> None:
    sparsifier = make()
    with pytest.raises(ConfigError, match=r"this \w+ is bound to no model yet: call attach\(model, optimizer\)"):
        own_loop(sparsifier, model := Net(), adam(model.parameters()), blobs(), epochs=1)


@pytest.mark.parametrize("spent", [False, True])
def test_no_update_comes_with_nine_tenths_of_a_task_itself(spent: bool) -> None:
    moments = update_moments()
    moments.begin_task(1)
    moments.begin_epoch(0, 55)
    due = [step for step in range(55) if moments.due(step, (step + 0.5) / 55 if spent else None)]
    assert due == [9, 19, 29, 39]  # that at .8 waits until step 49, which is (49 + .5) / 55 = .9
