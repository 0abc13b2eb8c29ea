"""LwF: the old network's answers, recorded once, are distilled at a temperature."""

from __future__ import annotations

from dataclasses import replace

import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, lend
from toys import Net, blobs

from sparcl.methods import LwF


def test_loss_and_gradient_are_those_of_a_direct_computation() -> None:
    method, model = LwF(alpha=0.6, temperature=2.0), Net(classes=6)
    lend(method, model)
    first, second = blobs()
    method.begin_task(first)
    now = batch(first, 0)
    loss, logits = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(logits[:, :2], now.labels))  # no class that is not yet there
    method.end_task(first)
    method.begin_task(second)
    recorded = model.eval()(second.train.inputs).detach()
    model.train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    now = batch(second, 3)
    loss, logits = method.loss(now)
    z = model(now.inputs)
    before = (recorded[now.ids, :2] / 2).exp()
    target = before / before.sum(1, keepdim=True)
    answer = (z[:, :2] / 2).exp()
    distilled = -(target * (answer / answer.sum(1, keepdim=True)).log()).sum(1).mean()
    expected = cross_entropy(z[:, :4], now.labels) + 0.6 * distilled
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_a_class_that_returns_is_distilled_once() -> None:
    method, task = LwF(), blobs()[0]
    lend(method, Net())
    method.end_task(task)
    method.end_task(replace(task, classes=(1, 2)))
    assert method.old == [0, 1, 2]
