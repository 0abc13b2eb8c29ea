"""DGM: which active gradients are updated, when the choice is made, and that the rest stands still."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import PRUNABLE_OF_NET, Bag, Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import DGM, TDM, Losses, Pattern

ALL = ("*",)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("frozen", [0.0, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("sparsity", [0.0, 0.75, 0.99])
def test_the_share_g_of_the_active_weights_with_least_cgi_is_frozen(sparsity: float, frozen: float, block: int) -> None:
    bag = Bag()
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.1)
    pattern = Pattern(block)
    if sparsity:
        TDM(sparsity, prunable=ALL, pattern=pattern).attach(bag, optimizer)
    dgm = DGM(frozen, alpha=0.3, beta=0.7, prunable=ALL, pattern=pattern).attach(bag, optimizer)
    told = []
    dgm.notify = lambda event, figures: told.append((event, figures))
    dgm.begin_task(0, samples=8, epochs=1, losses=Losses(task=bag.loss, replay=bag.loss))
    dgm.begin_step(0)
    if frozen == 0.0:
        assert not told
        assert all(layer.chosen is None for layer in dgm.layers)
        return
    total = 0
    for i, layer in enumerate(dgm.layers):
        units = len(layer.index) // block
        count = min(round(frozen * units), units - 1) * block
        total += count
        entries = layer.frozen_entries()
        if count == 0:
            assert entries is None
            continue
        assert entries is not None
        assert len(entries) == count
        assert set(entries.tolist()) <= set(layer.index.tolist())
        assert layer.chosen is not None
        assert int((~layer.chosen).sum()) == count
        cgi = 0.3 * bag.directions[0][i].abs() + 0.7 * bag.directions[1][i].abs()
        grouped = cgi.reshape(layer.shape[0] // block, block, -1)
        by_unit = grouped.mean(1, keepdim=True).expand_as(grouped).flatten()
        updated = by_unit[layer.index[layer.chosen]]
        assert not len(updated) or float(by_unit[entries].max()) <= float(updated.min())
    assert told == [("dgm.choose", {"frozen": total, "active": sum(len(layer.index) for layer in dgm.layers)})]


def test_choices_come_every_interval_at_each_task_and_after_each_mask_update() -> None:
    bag = Bag()
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.1)
    tdm = TDM(0.5, prunable=ALL).attach(bag, optimizer)
    dgm = DGM(0.2, interval=30, prunable=ALL).attach(bag, optimizer)
    step, chosen, updated = 0, [], []
    dgm.notify = lambda *_: chosen.append(step)
    tdm.notify = lambda event, _: updated.append(step) if event == "tdm.update" else None
    losses = Losses(task=bag.loss)
    for _ in range(2):
        for part in (tdm, dgm):
            part.begin_task(0, samples=8, epochs=1, losses=losses)
            part.begin_epoch(0, 100)
        for step in range(100):
            for part in (tdm, dgm):
                part.begin_step(step)
        for part in (tdm, dgm):
            part.end_task()
    assert updated == 2 * [10, 20, 30, 40, 50, 60, 70, 80]
    assert chosen == 2 * [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_chosen_gradients_alone_are_left_and_what_is_not_prunable_always_trains() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dgm = DGM(0.5).attach(model, optimizer)
    assert [layer.name for layer in dgm.layers] == list(PRUNABLE_OF_NET)
    before: dict[str, torch.Tensor] = {}

    def check() -> None:
        for name, p in model.named_parameters():
            assert p.grad is not None
            layer = next((la for la in dgm.layers if f"{la.name}.weight" == name), None)
            zero = int((p.grad == 0).sum())
            assert zero == (round(0.5 * p.numel()) if layer else 0), name
            if layer is not None:
                entries = layer.frozen_entries()
                assert entries is not None
                assert not p.grad.flatten()[entries].any()
                if name in before:
                    still = (p.detach() == before[name]).flatten()
                    assert bool(still[entries].all())
                    assert int((~still).sum()) > 0.3 * p.numel()
            before[name] = p.detach().clone()

    steps = own_loop(dgm, model, optimizer, blobs(tasks=1), epochs=5, each_step=check)
    assert steps == 20


def test_a_choice_is_of_every_active_weight_also_of_those_frozen_before() -> None:
    bag = Bag()
    dgm = DGM(0.5, prunable=ALL).attach(bag, torch.optim.SGD(bag.parameters(), lr=0.1))
    dgm.begin_task(0, samples=8, epochs=1, losses=Losses(task=bag.loss))
    dgm.choose()
    first = dgm.layers[0].frozen_entries()
    dgm.choose()
    second = dgm.layers[0].frozen_entries()
    assert first is not None
    assert second is not None
    common = len(set(first.tolist()) & set(second.tolist()))
    assert 40 < common < 110  # independent halves of 288 share 72 on average


def test_without_losses_dgm_says_what_it_needs() -> None:
    bag = Bag()
    dgm = DGM(prunable=ALL).attach(bag, torch.optim.SGD(bag.parameters(), lr=0.1))
    dgm.begin_task(0, samples=8, epochs=1)
    with pytest.raises(ConfigError, match="losses"):
        dgm.begin_step(0)


def test_settings_out_of_range_are_refused() -> None:
    for frozen in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="0 to less than 1"):
            DGM(frozen)
    with pytest.raises(ConfigError, match="1 iteration or more"):
        DGM(interval=0)


def test_a_layer_of_few_weights_is_never_frozen_as_a_whole() -> None:
    """Of one to four weights round(g n) is all of them: they would be the least important for good."""
    for frozen, units in [(0.8, 1), (0.9, 2), (0.9, 4)]:
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(units, 1, bias=False), nn.Linear(2, 2))
        dgm = DGM(frozen, ranking="fresh", prunable=["1"])
        dgm.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        x = torch.ones(4, units)
        dgm.begin_task(0, samples=8, epochs=1, losses=Losses(task=lambda m=model, x=x: m[1](x).sum()))
        dgm.begin_step(0)
        assert units - len(entries if (entries := dgm.layers[0].frozen_entries()) is not None else ()) == 1
