"""SNIP: one cut before training, at the largest |w · ∂L/∂w|."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import SNIP, Losses, Pattern


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_it_keeps_exactly_the_most_sensitive_weights_of_each_layer(distribution: str, block: int) -> None:
    model = Net().eval()
    snip = SNIP(0.8, pattern=Pattern(block), distribution=distribution)
    snip.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(len(layer.index) == layer.parameter.numel() for layer in snip.layers)  # dense until there is data
    task = blobs()[0]
    halves = [(task.train.inputs[i::2], task.train.labels[i::2]) for i in range(2)] * 2
    reference = copy.deepcopy(model)
    for x, y in halves:
        F.cross_entropy(reference(x), y).backward()
    batches = iter(halves)

    def loss() -> torch.Tensor:
        x, y = next(batches)
        return F.cross_entropy(model(x), y)

    events: list[tuple[str, dict[str, Any]]] = []
    snip.notify = lambda event, figures: events.append((event, figures))
    snip.begin_task(0, samples=40, epochs=1, losses=Losses(task=loss))
    for layer, target in zip(snip.layers, snip.target, strict=True):
        weight = reference.get_submodule(layer.name).weight
        sensitivity = (weight * weight.grad).detach().abs().reshape(weight.shape[0] // block, block, -1).mean(1)
        assert set(snip.active_units(layer).tolist()) == set(sensitivity.flatten().topk(target).indices.tolist())
        kept = weight.detach().flatten()[layer.index]
        if layer.name == "grouped":  # BatchNorm follows
            assert torch.equal(layer.gather(layer.parameter), kept)
        else:
            torch.testing.assert_close(layer.gather(layer.parameter), kept * (weight.norm() / kept.norm()))
    active = sum(snip.target) * block
    assert events == [("snip.gradient", {"dense_gradient_samples": 80}), ("snip.prune", {"active": active})]


def test_after_that_the_mask_never_moves() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snip = SNIP(0.9).attach(model, optimizer)
    seen: list[torch.Tensor] = []
    own_loop(
        snip,
        model,
        optimizer,
        blobs(),
        epochs=2,
        each_step=lambda: seen.append(torch.cat([layer.index for layer in snip.layers])),
    )
    assert len(seen) == 16
    assert all(torch.equal(index, seen[0]) for index in seen)
    assert len(seen[0]) == sum(snip.target)


def test_without_losses_it_says_what_it_needs() -> None:
    model = Net()
    snip = SNIP(0.9).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="SNIP ranks gradients"):
        snip.begin_task(0, samples=10, epochs=1)


def test_snip_leaves_gradients_and_running_statistics_alone() -> None:
    model, task = Net(), blobs()[0]
    snip = SNIP(0.8).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.train()
    buffers = [b.clone() for b in model.buffers()]
    losses = Losses(task=lambda: F.cross_entropy(model(task.train.inputs), task.train.labels))
    snip.begin_task(0, samples=40, epochs=1, losses=losses)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
