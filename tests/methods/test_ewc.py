"""EWC: the penalty is its formula, the information a mean over single samples."""

from __future__ import annotations

import copy

import torch
from lent import batch, cross_entropy, gradients, lend
from toys import Net, blobs

from sparcl.methods import EWC


def information(model: Net, inputs: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Mean of p·(∂ log p/∂θ)², sample by sample."""
    model = copy.deepcopy(model).eval()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in zip(inputs, labels.tolist(), strict=True):
        z = model(x[None])[0]
        p = (z.exp() / z.exp().sum())[y]
        for into, g in zip(total, gradients(model, p.log()), strict=True):
            into += p.detach() * g * g
    return [t / len(labels) for t in total]


def test_the_penalty_and_its_gradient_are_the_formula_over_two_tasks() -> None:
    method, model = EWC(strength=3.0, gamma=0.5), Net()
    lend(method, model)
    first, second = blobs()
    expected: list[torch.Tensor] = []
    for task in (first, second):
        new = information(model, task.train.inputs, task.train.labels)
        expected = [0.5 * f + n for f, n in zip(expected, new, strict=True)] if expected else new
        method.end_task(task)
        anchor = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    terms = [(f * (p - a) ** 2).sum() for f, p, a in zip(expected, model.parameters(), anchor, strict=True)]
    formula = 3.0 * sum(terms)
    assert formula > 0
    torch.testing.assert_close(method.penalty(), formula, rtol=1e-4, atol=1e-7)
    found = gradients(model, method.penalty())
    for g, f, p, a in zip(found, expected, model.parameters(), anchor, strict=True):
        torch.testing.assert_close(g, 2 * 3.0 * f * (p.detach() - a), rtol=1e-3, atol=1e-6)
    now = batch(second, 2)
    loss, logits = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(logits, now.labels) + formula)


def test_in_the_first_task_there_is_no_penalty_and_the_modes_stay() -> None:
    method, model = EWC(), Net()
    lend(method, model)
    now = batch(blobs()[0], 0)
    loss, logits = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(logits, now.labels))
    model.norm1.eval()
    method.end_task(blobs()[0])
    assert model.training
    assert not model.norm1.training


def test_a_parameter_that_the_answer_does_not_depend_on_carries_no_information() -> None:
    method, model = EWC(), Net()
    model.unused = torch.nn.Linear(3, 2)
    lend(method, model)
    method.end_task(blobs()[0])
    silent = [not bool(f.any()) for f in method.fisher]
    assert silent == [name.startswith("unused") for name, _ in model.named_parameters()]
