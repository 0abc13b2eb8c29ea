"""DER: the distance to stored logits, in a forward pass of its own, averaged over all logits."""

from __future__ import annotations

import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, lend, picks, second_task_of
from toys import Net, blobs

from sparcl.methods import DER


def test_loss_and_gradient_are_those_of_a_direct_computation() -> None:
    method = DER(20, alpha=0.3)
    model, task, generator, stored = second_task_of(method)
    (picked,) = picks(generator, 1)
    now = batch(task, 2)
    loss, logits = method.loss(now)
    assert int(model.norm1.num_batches_tracked) == 2

    assert method.buffer.inputs is not None
    answered = model(method.buffer.inputs[picked] * 0.5)
    distance = ((answered - stored[picked]) ** 2).sum() / (5 * 4)
    expected = cross_entropy(model(now.inputs), now.labels) + 0.3 * distance
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, model(now.inputs))
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_logits_stored_are_those_of_the_moment_and_hold_no_graph() -> None:
    method, model = DER(20), Net()
    lend(method, model)
    now = batch(blobs()[0], 0)
    _, logits = method.loss(now)
    answered = logits.detach().clone()
    with torch.no_grad():
        model.classifier.weight.mul_(2.0)
    method.after_step(now, logits)
    assert method.buffer.logits is not None
    assert torch.equal(method.buffer.logits[:6], answered)
    assert not method.buffer.logits.requires_grad


def test_importance_of_memory_is_its_part_of_the_loss() -> None:
    method = DER(20, alpha=0.3)
    model, _, generator, stored = second_task_of(method)
    (picked,) = picks(generator, 1)
    found = method.replay_importance_loss()
    assert found is not None
    assert method.buffer.inputs is not None
    answered = model(method.buffer.inputs[picked] * 0.5)
    torch.testing.assert_close(found, 0.3 * ((answered - stored[picked]) ** 2).mean())
