"""What a Learner answers: a number or a refusal, by name, and without a trace in what is learned afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import Net, blobs, make_learner

from sparcl import Learner
from sparcl.errors import DataError, TrainingError
from sparcl.methods import ER, Finetune, ICaRL


def test_an_answer_that_is_no_number_is_refused_and_no_class() -> None:
    """One step of a rate that is far too large: the loss before it was finite."""
    stream = blobs()
    learner = Learner(Net(), Finetune(), steps=1, batch_size=8, lr=1e38, backend="reference")
    learner.learn(stream[0])
    assert stream[0].test is not None
    with pytest.raises(TrainingError, match=r"test samples of task 1 are NaN: .*lower the learning rate"):
        learner.evaluate()
    with pytest.raises(DataError, match=r"^the network's answer to sample 0 is no number$"):
        learner.predict(stream[0].test.inputs)
    assert not learner.model.training


def test_the_sample_is_named_that_has_no_answer() -> None:
    stream = blobs()
    learner = make_learner()
    learner.learn(stream[0])
    x = stream[0].train.inputs.clone()
    x[5] = 3e38
    with pytest.raises(DataError, match="answer to sample 5 is no number"):
        learner.predict(x)
    assert len(learner.predict(x[:5])) == 5


def test_classes_without_an_answer_so_far_are_none() -> None:
    """iCaRL answers by the means of what it remembers, and of a task under way that is nothing yet."""
    stream = blobs()
    learner = make_learner(method=ICaRL(12), epochs=1)
    x = stream[1].train.inputs[:3]
    asked: list[str] = []

    def ask(event: str, figures: dict) -> None:
        if event == "epoch.end" and figures["task"] == 1:
            with pytest.raises(DataError, match="answer to sample 0 is no number") as refused:
                learner.predict(x, task=1)
            asked.append(str(refused.value))

    learner.observers.append(ask)
    for task in stream:
        learner.learn(task)
    assert len(asked) == 1
    assert torch.isfinite(learner.predict(x, task=1).probabilities).all()


class Drawing(Net):
    """Draws whenever it is asked, as a model does that answers by Monte Carlo dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn(x.shape))


@pytest.mark.parametrize("ask", ["predict", "evaluate"])
@pytest.mark.parametrize("borderless", [False, True])
def test_an_observer_that_asks_moves_nothing_that_is_learned(ask: str, borderless: bool) -> None:
    stream, weights, asked = blobs(), [], []
    assert stream[0].test is not None
    x = stream[0].test.inputs
    for asks in (False, True):
        model = Drawing(dropout=0.2)
        learner = Learner(model, ER(12), epochs=1, batch_size=8, backend="reference")

        def watch(event: str, _: dict, learner: Learner = learner) -> None:
            if event == "step.end":
                learner.predict(x) if ask == "predict" else learner.evaluate([stream[0]])
                asked.append(event)

        if asks:
            learner.observers.append(watch)
        for task in stream:
            if borderless:
                learner.observe(task.train.inputs[:9], task.train.labels[:9])
                learner.observe(task.train.inputs[9:20], task.train.labels[9:20])
            else:
                learner.learn(task)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert asked
    assert torch.equal(*weights)


def test_outside_of_training_a_model_may_answer_anew_each_time() -> None:
    stream = blobs()
    learner = make_learner(model=Drawing())
    learner.learn(stream[0])
    x = stream[0].train.inputs[:4]
    first, second = (learner.predict(x).probabilities for _ in range(2))
    assert not torch.equal(first, second)
