"""What a method needs to answer, beside the weights: a plain network with it answers as the Learner was measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import Net, blobs

from sparcl import Learner, SparCL
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import AGEM, LPS, METHODS, DERpp, Finetune, ICaRL, LwF, Method, PackNet
from sparcl.nn.convert import dense_state_dict
from sparcl.streams import Stream

MADE: dict[str, Callable[[], Method]] = {
    "icarl": lambda: ICaRL(24),
    "packnet": lambda: PackNet(pruned=0.5),
    "lps": lambda: LPS(pruned=0.5),
    "derpp": lambda: DERpp(24),
    "agem": lambda: AGEM(24),
    "finetune": Finetune,
}


def learned(name: str) -> tuple[Learner, Stream]:
    stream = blobs(3)
    learner = Learner(Net(6), MADE[name](), epochs=15, batch_size=8, lr=0.2)
    for task in stream:
        learner.learn(task)
    return learner, stream


def accuracies(stream: Stream, answer: Callable[[Tensor, int], Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    class_il, task_il = [], []
    for task in stream:
        logits, labels = answer(task.transform.test(task.test.inputs), task.index), task.test.labels
        own = torch.tensor(task.classes)
        class_il.append(100.0 * float((logits.argmax(1) == labels).float().mean()))
        task_il.append(100.0 * float((own[logits[:, own].argmax(1)] == labels).float().mean()))
    return tuple(class_il), tuple(task_il)


@pytest.mark.parametrize("name", MADE)
def test_a_plain_network_answers_with_the_weights_and_the_state(name: str) -> None:
    learner, stream = learned(name)
    measured = learner.evaluate()
    state = learner.method.answer_state(stream[0])
    kind = type(learner.method)
    assert bool(state) == (kind.answers_need is not None)
    plain = Net(6, seed=9)
    plain.load_state_dict(dense_state_dict(learner.model))
    plain.eval()
    with torch.no_grad():
        class_il, task_il = accuracies(stream, lambda x, t: kind.answer(plain, x, state, t))
        bare = [plain(x) for x in (task.transform.test(task.test.inputs) for task in stream)]
        full = [kind.answer(plain, task.transform.test(task.test.inputs), state, task.index) for task in stream]
    assert task_il == pytest.approx(measured.task_il, abs=1e-4)
    if measured.class_il is not None:
        assert class_il == pytest.approx(measured.class_il, abs=1e-4)
    same = [torch.equal(one, other) for one, other in zip(bare, full, strict=True)]
    assert all(same) == (kind.answers_need is None)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_predicts_in_its_own_way_says_what_its_answers_need(name: str) -> None:
    kind = METHODS[name]
    own_way = kind.predict is not Method.predict
    assert own_way == (kind.answers_need is not None)
    assert own_way == (kind.answer_state is not Method.answer_state)
    assert own_way == (kind.answer.__func__ is not Method.answer.__func__)  # type: ignore[attr-defined]


def test_a_part_that_is_not_there_is_refused_with_those_that_are() -> None:
    learner, stream = learned("packnet")
    state = learner.method.answer_state(stream[0])
    for task in (None, 3):
        with pytest.raises(ConfigError, match="answers for one of its tasks: task-0, task-1, task-2"):
            PackNet.answer(learner.model, stream[0].test.inputs, state, task)


def modes(learner: Learner) -> set[bool]:
    return {module.training for module in learner.model.modules()}


@pytest.mark.parametrize("name", ["derpp", "icarl", "packnet"])
def test_the_model_is_in_evaluation_mode_but_for_learning(name: str) -> None:
    seen: dict[str, set[bool]] = {}
    first, second = blobs()
    learner = Learner(Net(), MADE[name](), epochs=2, batch_size=10)
    assert modes(learner) == {False}
    learner.evaluate([first])
    assert modes(learner) == {False}

    def look(event: str, figures: dict[str, object]) -> None:
        del figures
        if event == "step.end":
            learner.evaluate([first])
        seen.setdefault(event, set()).update(modes(learner))

    learner.observers.append(look)
    learner.learn(first)
    assert seen["step.begin"] == seen["step.end"] == seen["epoch.end"] == {True}
    assert seen["task.end"] == {False}
    assert modes(learner) == {False}
    learner.evaluate()
    assert modes(learner) == {False}
    seen.clear()
    learner.learn(second)
    assert seen["step.begin"] == {True}


def test_evaluating_and_predicting_between_tasks_change_no_bit() -> None:
    states = []
    for looks in (False, True):
        learner = Learner(Net(), DERpp(20), SparCL(0.5), epochs=2, batch_size=10, backend="reference")
        for task in blobs():
            learner.learn(task)
            if looks:
                learner.evaluate()
                learner.model(task.test.inputs)
        states.append(dense_state_dict(learner.model))
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_a_task_that_fails_leaves_the_model_in_evaluation_mode() -> None:
    def stop(event: str, figures: dict[str, object]) -> None:
        del figures
        if event == "step.end":
            raise KeyboardInterrupt

    learner = Learner(Net(), observers=[stop])
    with pytest.raises(KeyboardInterrupt):
        learner.learn(blobs()[0])
    assert modes(learner) == {False}


@pytest.mark.parametrize("name", MADE)
def test_a_network_of_its_own_answers_as_the_method_does(name: str) -> None:
    learner, stream = learned(name)
    plain, state = Net(6).eval(), learner.method.answer_state(stream.tasks[0])
    plain.load_state_dict(dense_state_dict(learner.model))
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    for task in stream:
        x = task.transform.test(task.test.inputs)
        network = type(learner.method).as_network(plain, state, task.index).eval()
        expected = type(learner.method).answer(plain, x, state, task.index)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())


def test_a_class_without_a_mean_is_never_the_nearest() -> None:
    stream = blobs(3)
    learner = Learner(Net(6), ICaRL(24), batch_size=8)
    learner.learn(stream.tasks[0])
    plain = Net(6).eval()
    plain.load_state_dict(dense_state_dict(learner.model))
    x, state = stream.tasks[0].test.inputs[:3], learner.method.answer_state(stream.tasks[0])
    scores = ICaRL.as_network(plain, state)(x)
    assert torch.equal(scores.isfinite(), torch.tensor([[True, True, False, False, False, False]]).expand(3, 6))
    torch.testing.assert_close(scores, ICaRL.answer(plain, x, state), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [LwF, lambda: ICaRL(24)], ids=["lwf", "icarl"])
def test_a_state_inside_a_task_that_lacks_some_of_its_recorded_answers_is_refused(method: Callable[[], Method]) -> None:
    first, second, _ = blobs(3)
    learner = Learner(Net(6), method(), epochs=1, batch_size=8, lr=0.2)
    kept: list[Any] = []

    def keep(event: str, figures: dict[str, Any]) -> None:
        if event == "step.end" and figures["task"] == 1 and not kept:
            kept.append(copy.deepcopy(learner.checkpoint_state()))

    learner.observers.append(keep)
    learner.learn(first)
    learner.learn(second)
    (state,) = kept
    recorded = state["learner"]["method"]["recorded"]
    assert len(recorded) == len(second.train)
    state["learner"]["method"]["recorded"] = recorded[1:].clone()
    again = Learner(Net(6), method(), epochs=1, batch_size=8, lr=0.2)
    again.restore(state)
    with pytest.raises(CheckpointError, match=f"recorded answers to {len(recorded) - 1} samples, but task 2 has"):
        again.learn(second)
