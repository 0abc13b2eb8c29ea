"""DER++: DER and the remembered labels, each on a buffer batch of its own, in forward passes of their own."""

from __future__ import annotations

import pytest
import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, lend, picks, second_task_of
from torch import Tensor
from toys import Net, blobs

from sparcl.methods import DERpp


@pytest.mark.parametrize("single_head", [False, True])
def test_loss_and_gradient_are_those_of_a_direct_computation(single_head: bool) -> None:
    method = DERpp(20, alpha=0.2, beta=0.7, single_head=single_head)
    model, task, generator, stored = second_task_of(method)
    first, second = picks(generator, 2)
    assert first.tolist() != second.tolist()
    now = batch(task, 2)
    loss, logits = method.loss(now)
    assert int(model.norm1.num_batches_tracked) == 3

    inputs, labels = method.buffer.inputs, method.buffer.labels
    assert inputs is not None
    assert labels is not None
    plain: Tensor = model(now.inputs)
    scores = plain.clone()
    if single_head:
        scores[:, :2] = -torch.inf
    distance = ((model(inputs[first] * 0.5) - stored[first]) ** 2).sum() / (5 * 4)
    labelled = cross_entropy(model(inputs[second] * 0.5), labels[second])
    expected = cross_entropy(scores, now.labels) + 0.2 * distance + 0.7 * labelled
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, plain)  # not the single-head ones: these are stored
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_before_anything_is_remembered_it_is_the_tasks_loss_alone() -> None:
    method, model = DERpp(20), Net()
    lend(method, model)
    now = batch(blobs()[0], 0)
    loss, _ = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(model(now.inputs), now.labels))
    assert method.replay_importance_loss() is None


def test_importance_of_memory_is_both_replay_terms() -> None:
    method = DERpp(20, alpha=0.2, beta=0.7)
    model, _, generator, stored = second_task_of(method)
    first, second = picks(generator, 2)
    found = method.replay_importance_loss()
    inputs, labels = method.buffer.inputs, method.buffer.labels
    assert found is not None
    assert inputs is not None
    assert labels is not None
    distance = ((model(inputs[first] * 0.5) - stored[first]) ** 2).mean()
    expected = 0.2 * distance + 0.7 * cross_entropy(model(inputs[second] * 0.5), labels[second])
    torch.testing.assert_close(found, expected)
