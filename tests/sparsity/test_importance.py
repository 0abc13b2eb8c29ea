"""CWI and CGI against hand-written computation, and how the gradients behind them are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import PRUNABLE_OF_NET, Net

from sparcl.nn import sparse_layers
from sparcl.sparsity.importance import cgi, cwi, importance_gradients, lowest


def test_cwi_and_cgi_by_hand() -> None:
    w = torch.tensor([-0.5, 0.0, 2.0])
    task = torch.tensor([1.0, -2.0, 0.0])
    replay = torch.tensor([0.0, 4.0, -1.0])
    assert cwi(w, task, replay, 0.5, 0.25).tolist() == [1.0, 2.0, 2.25]
    assert cgi(task, replay, 0.5, 0.25).tolist() == [0.5, 2.0, 0.25]


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 2, 6, 6, generator=generator), torch.randint(0, 4, (6,), generator=generator))
        for _ in range(count)
    ]


def test_gradients_are_the_mean_over_fresh_batches_at_the_active_weights() -> None:
    model = Net()
    layers = sparse_layers(model)
    assert [layer.name for layer in layers] == list(PRUNABLE_OF_NET)
    for layer in layers:
        layer.set_index(torch.arange(0, layer.parameter.numel(), 3))
    drawn = iter(data := batches(3))
    found = importance_gradients(model, layers, lambda: F.cross_entropy(model((b := next(drawn))[0]), b[1]), 3)

    model.zero_grad()
    for x, y in data:
        (F.cross_entropy(model(x), y) / 3).backward()
    for layer, gradient in zip(layers, found, strict=True):
        assert layer.parameter.grad is not None
        torch.testing.assert_close(gradient, layer.parameter.grad.flatten()[::3], rtol=1e-5, atol=1e-7)


def test_gradients_and_running_statistics_of_the_model_stay_as_they_are() -> None:
    model = Net()
    (x, y), (x2, y2) = batches(2)
    F.cross_entropy(model(x), y).backward()
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    importance_gradients(model, sparse_layers(model), lambda: F.cross_entropy(model(x2), y2), 2)
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    assert all(p.grad is not None and torch.equal(p.grad, gradients[k]) for k, p in model.named_parameters())


def test_an_empty_buffer_or_an_unused_layer_has_no_importance() -> None:
    model = Net()
    layers = sparse_layers(model)
    assert not any(g.any() for g in importance_gradients(model, layers, lambda: None, 2))
    grouped, conv, hidden = importance_gradients(model, layers, lambda: model.hidden(torch.ones(1, 8)).sum(), 1)
    assert not grouped.any()
    assert not conv.any()
    assert bool(hidden.all())


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, float("inf"), float("nan")]), min_size=1, max_size=30),
    data=st.data(),
)
def test_lowest_is_exact_with_ties_infinities_and_nan(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(-1, len(scores)))
    mask = lowest(torch.tensor(scores), count)
    ranked = sorted(range(len(scores)), key=lambda i: (scores[i] if scores[i] == scores[i] else float("inf"), i))
    assert mask.nonzero().squeeze(1).tolist() == sorted(ranked[: max(count, 0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lowest_of_many_equals_a_stable_sort(dtype: torch.dtype) -> None:
    scores = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(10).round().to(dtype)
    expected = torch.zeros(20_000, dtype=torch.bool)
    expected[torch.argsort(scores, stable=True)[:7_777]] = True
    assert torch.equal(lowest(scores, 7_777), expected)


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_equal_scores_leave_in_the_order_that_is_given(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = (torch.rand(500, generator=generator) * levels).floor()
    order = torch.randperm(500, generator=generator)
    for count in (0, 1, 200, 499, 500):
        first = order[scores[order].argsort(stable=True)[:count]]
        found = lowest(scores, count, order.to(torch.int32))
        assert sorted(first.tolist()) == found.nonzero().squeeze(1).tolist()
