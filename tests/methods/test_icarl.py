"""iCaRL: herding, distillation, the nearest mean of exemplars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lent import batch, lend
from toys import Net, blobs

from sparcl import Learner
from sparcl.checkpoint import tree
from sparcl.errors import ConfigError, DataError
from sparcl.methods import ICaRL, icarl
from sparcl.methods.icarl import herding
from sparcl.methods.respond import features_of

CPU = torch.device("cpu")


def test_herding_takes_the_order_of_the_papers_algorithm() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    mean = features.mean(0)
    chosen: list[int] = []
    for k in range(1, 8):
        rest = [i for i in range(12) if i not in chosen]
        means = [torch.stack([features[i] for i in [*chosen, j]]).mean(0) for j in rest]
        assert len(chosen) == k - 1
        chosen.append(rest[min(range(len(rest)), key=lambda r: float((mean - means[r]).norm()))])
    assert herding(features, 7).tolist() == chosen
    everything = herding(features, 50).tolist()
    assert everything[:7] == chosen
    assert sorted(everything) == list(range(12))


def test_old_classes_are_taught_what_was_answered_and_new_ones_their_labels() -> None:
    method, model = ICaRL(8), Net()
    lend(method, model)
    first, second = blobs()
    method.begin_task(first)
    method.end_task(first)
    method.begin_task(second)
    old_answers = model.eval()(second.train.inputs)
    model.train()
    with torch.no_grad():
        model.classifier.weight += 0.1
    now = batch(second, 2)
    loss, logits = method.loss(now)
    assert method.buffer.inputs is not None
    exemplars = 6 * 8 / 40  # six samples a batch, eight exemplars beside forty samples: one or two of them
    assert int(exemplars) == 1
    before = torch.as_tensor(old_answers[now.ids])
    direct = method.distillation(logits, now.labels, before)
    p, terms = logits.sigmoid(), []
    for n, label in enumerate(now.labels.tolist()):
        for c in range(4):
            target = before[n, c].sigmoid() if c < 2 else float(c == label)
            terms.append(-(target * p[n, c].log() + (1 - target) * (1 - p[n, c]).log()))
    torch.testing.assert_close(direct, torch.stack(terms).mean())
    assert torch.isfinite(loss)
    assert loss != direct  # the exemplars are in it


def test_in_the_first_task_only_its_own_classes_are_trained() -> None:
    method, model = ICaRL(8), Net()
    lend(method, model)
    first, _ = blobs()
    method.begin_task(first)
    loss, logits = method.loss(batch(first, 0))
    assert torch.isinf(logits[:, 2:]).all()
    loss.backward()
    assert model.classifier.weight.grad is not None
    assert not model.classifier.weight.grad[2:].any()
    assert model.classifier.weight.grad[:2].any()


def test_exemplars_join_batches_in_their_proportion() -> None:
    method, model = ICaRL(8), Net()
    lend(method, model)
    first, second = blobs()
    method.begin_task(first)
    method.end_task(first)
    method.begin_task(second)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for _ in range(400):
        method.loss(batch(second, 0))
    assert set(sizes) == {7, 8}
    assert sum(sizes) / 400 == pytest.approx(6 + 6 * 8 / 40, abs=0.1)


def test_exemplars_are_herded_by_class_and_answers_are_the_nearest_mean() -> None:
    stream, method = blobs(2), ICaRL(10)
    learner = Learner(Net(), method, batch_size=10, epochs=2)
    for task in stream:
        learner.learn(task)
    state = method.buffer.state_dict()
    assert torch.bincount(state["labels"]).tolist() == [2, 2, 2, 2]
    model, task = learner.model.eval(), stream[1]
    of_class = task.train.inputs[task.train.labels == 3]
    order = herding(features_of(model, of_class, task, CPU), 2)
    assert torch.equal(state["inputs"][state["labels"] == 3], of_class[order])
    means = []
    for k in range(4):
        mean = features_of(model, state["inputs"][state["labels"] == k], task, CPU).mean(0)
        means.append(mean / mean.norm())
    x = task.test.inputs[:7]
    distances = (features_of(model, x, task, CPU)[:, None] - torch.stack(means)).square().sum(2)
    scores = method.predict(x, task)
    torch.testing.assert_close(scores, -distances, rtol=1e-4, atol=1e-5)


def test_means_follow_the_network() -> None:
    stream, method = blobs(2), ICaRL(10)
    learner = Learner(Net(), method, batch_size=10)
    learner.learn(stream[0])
    learner.evaluate()
    learner.learn(stream[1])
    learner.model.eval()
    x, task = stream[1].test.inputs[:5], stream[1]
    fresh = ICaRL(10)
    fresh.attach(method.host)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(method.predict(x, task), fresh.predict(x, task))


def test_a_buffer_smaller_than_the_classes_is_refused() -> None:
    method = ICaRL(3)
    lend(method, Net())
    first, second = blobs()
    method.begin_task(first)
    method.end_task(first)
    with pytest.raises(ConfigError, match="buffer size 3 cannot hold one sample of 4"):
        method.begin_task(second)


def test_answers_inside_a_task_are_those_of_the_network_as_it_is() -> None:
    stream, method = blobs(2), ICaRL(10)
    learner = Learner(Net(), method, batch_size=10, lr=0.1)
    learner.learn(stream[0])
    seen: list[torch.Tensor] = []

    def look(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end":
            fresh = ICaRL(10)
            fresh.attach(method.host)
            fresh.load_state_dict(method.state_dict())
            means = method.answer_state(stream[0])["means"]
            assert torch.equal(means, fresh.answer_state(stream[0])["means"])
            seen.append(means)

    learner.observers.append(look)
    learner.learn(stream[1])
    assert len(seen) > 1
    assert not torch.equal(seen[0], seen[-1])


def test_where_shares_shrink_the_first_exemplars_of_herding_stay() -> None:
    stream, method = blobs(2), ICaRL(8)
    learner = Learner(Net(), method, batch_size=10)
    learner.learn(stream[0])
    of_class = (stream[0].train.labels == 0).nonzero().squeeze(1)
    x = stream[0].train.inputs[of_class]
    order = herding(features_of(learner.model, x, stream[0], torch.device("cpu")), 4)
    assert order.tolist() != sorted(order.tolist())
    learner.learn(stream[1])
    buffer = method.buffer
    assert buffer.inputs is not None
    assert buffer.labels is not None
    assert torch.equal(buffer.inputs[: len(buffer)][buffer.labels[: len(buffer)] == 0], x[order[:2]])


def test_exemplars_that_could_not_be_read_to_the_end_are_none_and_the_task_ends_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, whole = (Learner(Net(), ICaRL(40), batch_size=10) for _ in range(2))
    first, second = blobs(per_class=12)  # fewer of a class than its share
    for each in (learner, whole):
        each.learn(first)
    reads = icarl.features_of
    read: list[int] = []

    def fails(*arguments: Any) -> torch.Tensor:
        read.append(len(read))
        if len(read) == 2:
            raise DataError("the file of a sample cannot be read")
        return reads(*arguments)

    monkeypatch.setattr(icarl, "features_of", fails)
    with pytest.raises(DataError, match="cannot be read"):
        learner.learn(second)
    monkeypatch.undo()
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, Net())
    whole.learn(second)
    for each in (learner, loaded):
        each.learn(second)
        assert tree.difference(each.checkpoint_state(), whole.checkpoint_state()) is None
