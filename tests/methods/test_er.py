"""ER: one forward pass and one mean over the task's and the remembered samples."""

from __future__ import annotations

import pytest
import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, lend, picks, second_task_of
from toys import Net, blobs

from sparcl.methods import ER


@pytest.mark.parametrize("single_head", [False, True])
def test_loss_and_gradient_are_those_of_a_direct_computation(single_head: bool) -> None:
    method = ER(20, single_head=single_head)
    model, task, generator, _ = second_task_of(method)
    (picked,) = picks(generator, 1)
    now = batch(task, 2)
    loss, logits = method.loss(now)
    assert int(model.norm1.num_batches_tracked) == 1

    assert method.buffer.inputs is not None
    assert method.buffer.labels is not None
    both = model(torch.cat([now.inputs, method.buffer.inputs[picked] * 0.5]))
    labels = torch.cat([now.labels, method.buffer.labels[picked]])
    scores = both.clone()
    if single_head:
        scores[:6, :2] = -torch.inf  # the classes of the first task, for the task's own samples only
    expected = cross_entropy(scores, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, both[:6])
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_before_anything_is_remembered_it_is_the_tasks_loss_alone() -> None:
    method, model = ER(20), Net()
    lend(method, model)
    now = batch(blobs()[0], 0)
    loss, _ = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(model(now.inputs), now.labels))
    assert method.replay_importance_loss() is None


def test_inputs_are_stored_before_augmentation_and_without_logits() -> None:
    method = ER(20)
    lend(method, Net())
    now = batch(blobs()[0], 0)
    method.after_step(now, torch.zeros(6, 4))
    assert method.buffer.inputs is not None
    assert torch.equal(method.buffer.inputs[:6], now.raw)
    assert method.buffer.logits is None


def test_importance_of_memory_is_the_cross_entropy_on_a_fresh_buffer_batch() -> None:
    method = ER(20)
    model, _, generator, _ = second_task_of(method)
    for picked in picks(generator, 2):
        found = method.replay_importance_loss()
        assert method.buffer.inputs is not None
        assert method.buffer.labels is not None
        assert found is not None
        expected = cross_entropy(model(method.buffer.inputs[picked] * 0.5), method.buffer.labels[picked])
        torch.testing.assert_close(found, expected)
