"""ER-ACE: new samples compete among the classes of their batch only, remembered ones among all."""

from __future__ import annotations

import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, picks, second_task_of

from sparcl.methods import ERACE, Batch


def test_loss_and_gradient_are_those_of_a_direct_computation() -> None:
    method = ERACE(20)
    model, task, generator, _ = second_task_of(method)
    (picked,) = picks(generator, 1)
    now = batch(task, 2)
    loss, logits = method.loss(now)
    assert method.buffer.inputs is not None
    assert method.buffer.labels is not None
    present = sorted(set(now.labels.tolist()))
    assert present == [2, 3]
    columns = torch.tensor([present.index(label) for label in now.labels.tolist()])
    new = cross_entropy(model(now.inputs)[:, present], columns)
    old = cross_entropy(model(method.buffer.inputs[picked] * 0.5), method.buffer.labels[picked])
    torch.testing.assert_close(loss, new + old)
    torch.testing.assert_close(logits, model(now.inputs))
    assert_same_gradients(gradients(model, loss), gradients(model, new + old))


def test_an_old_class_outside_the_batch_is_not_pushed_away() -> None:
    method = ERACE(20)
    _, task, _, _ = second_task_of(method)
    method.buffer.inputs = method.buffer.labels = None  # nothing remembered: the task's loss alone
    loss, logits = method.loss(batch(task, 2))
    at_logits = torch.autograd.grad(loss, logits)[0]
    assert not at_logits[:, :2].any()
    assert at_logits[:, 2:].all()


def test_a_class_of_the_task_that_is_not_in_the_batch_is_not_pushed_away_either() -> None:
    method = ERACE(20)
    _, task, _, _ = second_task_of(method)
    method.buffer.inputs = method.buffer.labels = None
    ids = (task.train.labels == 3).nonzero().squeeze(1)[:4]
    raw = task.train.inputs[ids]
    loss, logits = method.loss(Batch(ids, raw, raw * 0.5, task.train.labels[ids], task))
    at_logits = torch.autograd.grad(loss, logits)[0]
    assert not at_logits.any()  # one class alone: nothing to tell it from
