"""A task made by hand: cast and refused as `from_arrays` casts and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toys import Net, adam, blobs, make_learner

from sparcl.errors import ConfigError, DataError
from sparcl.methods import METHODS, DERpp
from sparcl.streams import Samples, Task, Transform

FIRST, SECOND = blobs()


def with_train(change: Any, of: Task = FIRST) -> Task:
    return replace(of, train=change(of.train))


def with_test(change: Any, of: Task = FIRST) -> Task:
    return replace(of, test=change(of.test))


def labels(change: Any) -> Any:
    return lambda s: Samples(s.inputs, change(s.labels.clone()))


def inputs(change: Any) -> Any:
    return lambda s: Samples(change(s.inputs.clone()), s.labels)


def set_to(index: Any, value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[index] = value
        return tensor

    return change


WRONG: list[tuple[Any, str]] = [
    (lambda: with_train(labels(set_to(3, 2))), "training label 2 of sample 3 is out of range: allowed are 0 to 1"),
    (lambda: with_test(labels(set_to(3, 7))), "test label 7 of sample 3 is out of range: allowed are 0 to 1"),
    (lambda: with_train(labels(set_to(3, -1))), "training label -1 of sample 3 is out of range"),
    (lambda: replace(FIRST, classes=(0, 1, 2)), "class '2' has no training samples: every class needs at least one"),
    (
        lambda: with_train(labels(lambda y: 0 * y + 1)),
        "class '0' has no training samples.*labels start at 0, yours at 1",
    ),
    (lambda: replace(FIRST, classes=()), r"classes are \(\): the columns of the logits .* are needed, each once"),
    (lambda: replace(FIRST, classes=(0, 1, 1)), r"classes are \(0, 1, 1\): the columns"),
    (lambda: replace(FIRST, classes=(-2, 0, 1)), r"classes are \(-2, 0, 1\): .* 0 or more"),
    (lambda: replace(FIRST, classes=(0.0, 1.0)), r"classes are \(0.0, 1.0\)"),
    (lambda: replace(FIRST, classes=None), "classes are None"),
    (
        lambda: with_train(labels(lambda y: y[:-1])),
        "40 training inputs but 39 training labels: there must be one label",
    ),
    (lambda: with_test(inputs(lambda x: x[:-1])), "39 test inputs but 40 test labels"),
    (lambda: with_test(inputs(lambda x: x[..., :5])), "they must agree"),
    (lambda: with_test(inputs(lambda x: x.to(torch.uint8))), "they must agree"),
    (lambda: with_train(inputs(set_to((7, 0, 0, 0), np.nan))), "training inputs hold NaN .* the first in sample 7"),
    (lambda: with_test(inputs(set_to((2, 0, 0, 0), np.inf))), "test inputs hold NaN or infinite .* in sample 2"),
    (lambda: with_train(inputs(lambda x: x[:, 0, 0, 0])), "non-empty"),
    (lambda: with_train(labels(lambda y: y.float())), r"training labels are torch.float32 of shape \(40,\): integers"),
    (lambda: with_train(labels(lambda y: y == 1)), "torch.bool"),
    (lambda: with_train(labels(lambda y: torch.stack([y, 1 - y], 1))), r"torch.int64 of shape \(40, 2\): integers"),
    (lambda: with_test(labels(lambda y: torch.rand(len(y), 4))), r"test labels are torch.float32 of shape \(40, 4\)"),
    (
        lambda: with_train(lambda s: Samples(s.inputs[:1], s.labels[:1])),
        "class '1' has no training samples",
    ),
    (
        lambda: with_train(lambda s: Samples(s.inputs[:0], s.labels[:0])),
        "there are no training samples: one or more are needed",
    ),
    (lambda: replace(FIRST, train=None), "there are no training samples"),
    (lambda: with_train(lambda s: (s.inputs, s.labels)), r"given as a tuple: Samples\(inputs, labels\) is needed"),
    (lambda: with_train(lambda s: Samples(s.inputs, 3)), "inputs and labels are needed"),
    (lambda: with_train(labels(lambda y: y.numpy().astype(str))), "training labels have dtype"),
    (lambda: replace(FIRST, index=-1), "a task's index is -1"),
    (lambda: replace(FIRST, index=None), "a task's index is None"),
    (lambda: replace(FIRST, transform=None), r"task 1 has a NoneType for a transform: use Transform\(\)"),
    (lambda: (FIRST.train, FIRST.test), "a tuple is no task"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_from_arrays_refuses_is_refused_at_learn_before_any_work(make: Any, message: str) -> None:
    told: list[str] = []
    learner = make_learner(observers=[lambda event, _: told.append(event)])
    with pytest.raises(DataError, match=message) as caught:
        learner.learn(make())
    assert "\n" not in str(caught.value)
    assert told == []
    learner.learn(FIRST)  # nothing was bent


def learned(task: Task, tests: Task) -> dict[str, torch.Tensor]:
    learner = make_learner(model=Net(), method=DERpp(12))
    learner.learn(task)
    assert learner.evaluate().task_il == learner.evaluate([tests]).task_il
    return learner.model.state_dict()


CAST: dict[str, Any] = {
    "numpy": lambda s: Samples(s.inputs.numpy(), s.labels.numpy()),
    "float64": lambda s: Samples(s.inputs.double(), s.labels),
    "read only": lambda s: Samples(np.frombuffer(s.inputs.numpy().tobytes(), "f4").reshape(s.inputs.shape), s.labels),
    "int32": lambda s: Samples(s.inputs, s.labels.int()),
    "int8": lambda s: Samples(s.inputs, s.labels.to(torch.int8)),
    "uint8": lambda s: Samples(s.inputs, s.labels.to(torch.uint8)),
    "uint16": lambda s: Samples(s.inputs, s.labels.numpy().astype(np.uint16)),
    "big endian": lambda s: Samples(s.inputs.numpy().astype(">f4"), s.labels.numpy().astype(">i8")),
    "lists": lambda s: Samples(s.inputs.tolist(), s.labels.tolist()),
    "requires grad": lambda s: Samples(s.inputs.clone().requires_grad_(), s.labels),
}


@pytest.mark.parametrize("kind", CAST)
def test_what_from_arrays_casts_is_cast_to_the_same_bits(kind: str) -> None:
    expected = learned(FIRST, FIRST)
    given = replace(
        FIRST, index=np.int64(0), train=CAST[kind](FIRST.train), test=CAST[kind](FIRST.test), classes=[0, np.int64(1)]
    )
    state = learned(given, given)
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.mark.parametrize("test", [None, Samples(FIRST.train.inputs[:0], FIRST.train.labels[:0])])
def test_a_task_without_test_samples_is_learned_and_not_evaluated_on(test: Samples | None) -> None:
    learner = make_learner()
    learner.learn(Task(0, (0, 1), FIRST.train, test))
    learner.learn(SECOND)
    for tasks in (None, [replace(FIRST, test=test)], [SECOND, replace(FIRST, test=test)]):
        with pytest.raises(DataError, match="task 1: there are no test samples to evaluate on") as caught:
            learner.evaluate(tasks)
        assert "\n" not in str(caught.value)
    assert len(learner.evaluate([SECOND]).task_il) == 1


def test_what_cannot_be_evaluated_on_is_refused() -> None:
    learner = make_learner()
    learner.learn(FIRST)
    with pytest.raises(DataError, match="task 1: test label 7 of sample 3"):
        learner.evaluate([with_test(labels(set_to(3, 7)))])
    with pytest.raises(ConfigError, match="4 logits, but task 1 has class 9"):
        learner.evaluate([replace(FIRST, classes=(0, 1, 9))])
    one = learner.evaluate([with_test(lambda s: Samples(s.inputs[:1], s.labels[:1]))])  # a test sample is enough
    assert one.task_il[0] in (0.0, 100.0)


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_return_are_refused_by_the_methods_that_have_one_task_for_a_class(method: str) -> None:
    learner = make_learner(model=Net(classes=6), method=METHODS[method](), sparsifier=None)
    learner.learn(FIRST)
    before = learner.evaluate([FIRST])
    again = Task(1, (1, 2), Samples(SECOND.train.inputs, SECOND.train.labels - 1), None, Transform())
    if method == "joint":
        return
    if method in ("packnet", "lps", "icarl"):
        with pytest.raises(ConfigError, match=r"class 1 of task 2 was learned in .*bring new classes"):
            learner.learn(again)
        assert learner.evaluate([FIRST]) == before
        learner.learn(SECOND)
    else:
        learner.learn(again)
        assert learner.learned == 2


def test_classes_that_return_are_remembered_through_a_checkpoint(tmp_path: Any) -> None:
    for method in ("packnet", "lps", "icarl"):
        learner = make_learner(method=METHODS[method](), sparsifier=None)
        learner.learn(FIRST)
        learner.save(tmp_path / method)
        loaded = type(learner).load(tmp_path / method, Net(), optimizer=adam, backend="reference")
        with pytest.raises(ConfigError, match="class 0 of task 2"):
            loaded.learn(replace(FIRST, index=1))


def test_a_stream_is_merged_without_the_test_samples_that_are_not_there() -> None:
    stream = blobs()
    some = replace(stream, tasks=(replace(stream[0], test=None), stream[1])).merged()[0]
    assert some.test is not None
    assert len(some.test) == len(stream[1].test)
    assert replace(stream, tasks=tuple(replace(task, test=None) for task in stream)).merged()[0].test is None


def test_a_refused_task_is_not_among_those_that_were_learned() -> None:
    learner = make_learner(method=METHODS["icarl"](8), sparsifier=None)
    learner.learn(FIRST)
    accuracy = learner.evaluate()
    for wrong in (replace(FIRST, index=1), replace(SECOND, classes=(2, 3, 9))):
        with pytest.raises((ConfigError, DataError)):
            learner.learn(wrong)
        assert learner.evaluate() == accuracy
