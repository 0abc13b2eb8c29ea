"""A-GEM: the gradient that the optimizer sees never opposes that of the memory."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lent import batch, gradients, lend
from toys import Net, blobs

from sparcl import Learner, SparCL
from sparcl.methods import AGEM
from sparcl.methods.agem import project

numbers = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4)


@settings(deadline=None)
@given(numbers, numbers)
def test_a_projected_gradient_never_opposes_the_reference(first: list[float], second: list[float]) -> None:
    def parts(values: list[float]) -> list[torch.Tensor]:
        return [torch.tensor(values[:3]).view(3, 1), torch.tensor(values[3:])]

    g, g_ref = parts(first), parts(second)
    projected = project(g, g_ref)
    assert all(t is not None for t in projected)
    a, b, c = (torch.cat([t.flatten() for t in ts if t is not None]).double() for ts in (g, g_ref, projected))
    assert c @ b >= -1e-4 * (1.0 + a.norm() * b.norm())
    if a @ b >= 0:
        assert torch.equal(c, a)
    elif b.norm() > 1e-3:
        torch.testing.assert_close(c, a - (a @ b) / (b @ b) * b, rtol=1e-4, atol=1e-4)


def test_a_parameter_that_the_task_does_not_reach_moves_only_where_the_past_is_opposed() -> None:
    """As of a network with a branch for each task, beside layers that all share."""
    shared, old = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    along, against = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0])
    assert project([None, along, None], [old, shared, None])[0] is None
    untouched = project([along, None], [None, old])  # nothing in common
    assert untouched[0] is along
    assert untouched[1] is None
    branch, rest, nobody = project([None, against, None], [old, shared, None])
    assert nobody is None
    assert branch is not None
    assert rest is not None
    scale = -3.0 / (9.0 + 16.0)
    torch.testing.assert_close(branch, -scale * old)
    torch.testing.assert_close(rest, against - scale * shared)
    torch.testing.assert_close((branch @ old) + (rest @ shared), torch.tensor(0.0))


def test_after_backward_leaves_the_projection_of_the_tasks_gradient() -> None:
    opposed = 0
    for start in range(0, 30, 3):
        method, model = AGEM(8), Net(seed=start)
        generator = lend(method, model)
        first, second = blobs()
        method.end_task(first)
        ahead = torch.Generator()
        ahead.set_state(generator.get_state())
        picked = torch.randperm(8, generator=ahead)[:5]
        assert method.buffer.inputs is not None
        assert method.buffer.labels is not None
        now = batch(second, start % 9)
        loss, _ = method.loss(now)
        g = gradients(model, method.loss(now)[0])
        reference = torch.nn.functional.cross_entropy(
            model(method.buffer.inputs[picked] * 0.5), method.buffer.labels[picked]
        )
        g_ref = gradients(model, reference)
        loss.backward()
        method.after_backward(now)
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        a, b = (torch.cat([t.flatten() for t in ts]) for ts in (g, g_ref))
        expected = a - torch.clamp(a @ b, max=0) / (b @ b) * b
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert found @ b >= -1e-5
        opposed += bool(a @ b < 0)
    assert opposed > 0  # else nothing was projected


def test_the_memory_holds_equal_shares_of_the_past_tasks_and_nothing_of_the_present() -> None:
    stream = blobs(3)
    method = AGEM(9)
    learner = Learner(Net(6), method, batch_size=10)
    sizes = []
    for task in stream:
        learner.learn(task)
        sizes.append(torch.bincount(method.buffer.state_dict()["groups"]).tolist())
    assert sizes == [[9], [4, 4], [3, 3, 3]]


def test_under_sparcl_only_what_may_move_is_projected() -> None:
    """Beyond the mask and at frozen weights the gradient stays 0, and the products are taken without them."""
    stream, method = blobs(2), AGEM(20)
    learner = Learner(Net(), method, SparCL(0.5), batch_size=10, epochs=2, backend="reference")
    seen = 0

    def look(event: str, figures: dict[str, object]) -> None:
        nonlocal seen
        if event != "step.end" or figures["task"] == 0:
            return
        for layer in learner.sparsifier.layers:
            moving = torch.zeros(layer.parameter.numel(), dtype=torch.bool)
            moving[layer.index if layer.chosen is None else layer.index[layer.chosen]] = True
            assert layer.parameter.grad is not None
            assert not layer.parameter.grad.flatten()[~moving].any()
            assert layer.parameter.grad.flatten()[moving].any()
            seen += 1

    learner.observers.append(look)
    for task in stream:
        learner.learn(task)
    assert seen > 0


def test_a_step_does_not_oppose_the_past_where_no_norm_follows() -> None:
    """There a sparsifier scales gradients by 1/density: what is applied is judged, layer by layer scaled."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(72, 24),
        torch.nn.ReLU(),
        torch.nn.Linear(24, 24),
        torch.nn.ReLU(),
        torch.nn.Linear(24, 4),
    )
    method = AGEM(20)
    learner = Learner(model, method, SparCL(0.9, prunable=["1", "3"], gradients=0.0), batch_size=10, epochs=4, lr=0.1)
    assert learner.sparsifier.tdm.scaled
    references, opposed = [], 0
    scale = method.host.scale_gradients

    def note() -> None:
        references.append([p.grad.clone() for p in learner.model.parameters()])
        scale()

    object.__setattr__(method.host, "scale_gradients", note)

    def look(event: str, figures: dict[str, object]) -> None:
        nonlocal opposed
        del figures
        if event == "step.end" and references:
            applied = zip((p.grad for p in learner.model.parameters()), references.pop(), strict=True)
            dot = sum(float((a * b).sum()) for a, b in applied)
            assert dot > -1e-4
            opposed += abs(dot) < 1e-4

    learner.observers.append(look)
    for task in blobs(2):
        learner.learn(task)
    assert opposed > 0, "nothing was projected"
