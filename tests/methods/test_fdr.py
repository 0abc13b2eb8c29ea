"""FDR: the L2 distance between present and stored answers, as probabilities."""

from __future__ import annotations

import torch
from lent import assert_same_gradients, batch, cross_entropy, gradients, lend, picks
from toys import Net, blobs

from sparcl.methods import FDR


def test_loss_and_gradient_are_those_of_a_direct_computation() -> None:
    method, model = FDR(6, alpha=0.7), Net()
    generator = lend(method, model)
    first, second = blobs()
    method.end_task(first)
    assert model.training
    with torch.no_grad():
        for p in model.parameters():  # the network moves on, so that the distance is not 0
            p.add_(0.1)
    ahead = torch.Generator()
    ahead.set_state(generator.get_state())
    picked = torch.randperm(6, generator=ahead)[:5]
    now = batch(second, 2)
    loss, logits = method.loss(now)
    assert method.buffer.inputs is not None
    assert method.buffer.logits is not None

    def probabilities(z: torch.Tensor) -> torch.Tensor:
        return z.exp() / z.exp().sum(1, keepdim=True)

    moved = probabilities(model(method.buffer.inputs[picked] * 0.5)) - probabilities(method.buffer.logits[picked])
    expected = cross_entropy(model(now.inputs), now.labels) + 0.7 * moved.square().sum(1).sqrt().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, model(now.inputs))
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_answers_are_stored_at_the_tasks_end_in_equal_shares_and_stay() -> None:
    method, model = FDR(6), Net()
    lend(method, model)
    first, second = blobs()
    method.end_task(first)
    assert method.buffer.inputs is not None
    assert method.buffer.logits is not None
    answers = model.eval()(method.buffer.inputs)
    torch.testing.assert_close(method.buffer.logits, answers.detach())
    with torch.no_grad():
        model.classifier.bias += 1.0
    method.end_task(second)
    assert method.buffer.state_dict()["groups"].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(method.buffer.logits[:3], answers[:3].detach())
    torch.testing.assert_close(method.buffer.logits[3:], model(method.buffer.inputs[3:]).detach())


def test_fdr_leaves_out_the_columns_of_classes_that_came_after_the_answer() -> None:
    first, second = blobs()
    method, model = FDR(6, alpha=2.0), Net()
    generator = lend(method, model)
    old, new = torch.randn(3, 2, generator=generator), torch.randn(3, 4, generator=generator)
    method.buffer.admit(first.train.inputs[:3], first.train.labels[:3], old, torch.zeros(3, dtype=torch.int64))
    method.buffer.admit(second.train.inputs[:3], second.train.labels[:3], new, torch.ones(3, dtype=torch.int64))
    (picked,) = picks(generator, 1)
    found = method.replay_importance_loss()
    logits = model(torch.cat([first.train.inputs[:3], second.train.inputs[:3]])[picked] * 0.5)
    distances = [
        (row[: len(kept)].softmax(0) - kept.softmax(0)).norm()
        for row, kept in zip(logits, [[*old, *new][i] for i in picked.tolist()], strict=True)
    ]
    assert found is not None
    torch.testing.assert_close(found, 2.0 * torch.stack(distances).mean())
