"""A head that grows with classes that nobody named beforehand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import Net, adam, blobs, make_learner

from sparcl import Learner, SparCL, kernels, methods, streams
from sparcl.checkpoint import tree
from sparcl.errors import CheckpointError, ConfigError, DataError
from sparcl.methods.der import squared_distance
from sparcl.nn import ConvNet
from sparcl.sparsity import Static

BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not kernels.available(), reason="not compiled")),
]
CENTRES = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(0))
KINDS = ["cat", "dog", 7, "éléphant", "fox", -3]


def pictures(*kinds: Any, each: int = 24, seed: int = 0) -> tuple[Tensor, list[Any]]:
    """Noisy pictures [N, 2, 6, 6] of these classes, and their names."""
    generator = torch.Generator().manual_seed(seed)
    names = [kind for _ in range(each) for kind in kinds]
    rows = torch.tensor([KINDS.index(name) for name in names])
    return CENTRES[rows] + 0.3 * torch.randn(len(names), 2, 6, 6, generator=generator), names


def task(*kinds: Any, **options: Any) -> streams.Task:
    x, y = pictures(*kinds, **options)
    return streams.make_task(x, np.array(y, dtype=object), test=(x[: 2 * len(kinds)], y[: 2 * len(kinds)]))


def make(method: Any = None, *, backend: str = "reference", sparsifier: Any = None, **options: Any) -> Learner:
    return Learner(
        Net(classes=3),
        method or methods.DERpp(16),
        sparsifier or SparCL(0.5, samples=0.0),
        **{"optimizer": adam, "epochs": 8, "batch_size": 8, "backend": backend, "classes": (), **options},
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [k for k in methods.METHODS.values() if k.grows])
def test_every_method_that_can_learns_classes_as_they_come(kind: Any, backend: str) -> None:
    learner = make(kind() if kind is methods.Finetune else kind(16), backend=backend)
    learner.learn(task("cat", 7))
    learner.learn(task("dog", "éléphant", "fox"))
    learner.learn(task("cat", -3))  # one of them again
    assert learner.classes.names == ["cat", 7, "dog", "éléphant", "fox", -3]
    x, _ = pictures("cat", -3, each=4, seed=1)
    answer = learner.predict(x)
    assert answer.labels == ["cat", -3] * 4
    assert answer.probabilities.shape == (8, 6)
    accuracy = learner.evaluate()
    assert accuracy.task_il is None  # a class of two tasks
    assert accuracy.class_il is not None
    assert accuracy.class_il[2] == 100.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_old_rows_their_optimizer_state_and_old_logits_keep_their_bits(backend: str) -> None:
    learner = make(backend=backend)
    learner.learn(task("cat", "dog"))
    x, _ = pictures("cat", "dog", each=20)
    head = learner.model.classifier
    weight, state = head.weight.detach().clone(), learner.optimizer.state[head.weight]["exp_avg"].clone()
    learner.model.eval()
    before = learner.model(x).detach()
    arrived = task("fox", 7, -3)
    bound, new = learner.classes.bind(arrived, 1)
    with learner.classes.extended(new, learner.optimizer, learner.generators.head):
        pass
    assert bound.classes == (2, 3, 4)
    assert torch.equal(head.weight[:2], weight)
    assert torch.equal(learner.optimizer.state[head.weight]["exp_avg"][:2], state)
    assert not learner.optimizer.state[head.weight]["exp_avg"][2:].any()
    assert torch.equal(learner.model(x)[:, :2], before)


def test_remembered_logits_are_compared_in_the_columns_they_had() -> None:
    logits = torch.tensor([[1.0, 2.0, 50.0], [3.0, 5.0, 7.0]])
    nan = float("nan")
    assert squared_distance(logits, torch.tensor([[0.0, 0.0], [3.0, 5.0]])) == 5 / 4
    assert squared_distance(logits, torch.tensor([[0.0, 0.0, nan], [3.0, 5.0, 9.0]])) == (1 + 4 + 4) / 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grown_head_survives_save_kill_and_load_to_the_same_bits(backend: str, tmp_path: Path) -> None:
    tasks = [task("cat", "dog"), task("fox", 7, -3), task("dog", "éléphant")]
    whole = make(backend=backend)
    for t in tasks:
        whole.learn(t)

    def stop(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end" and stopped.steps == 60:
            stopped.save(tmp_path)
            raise KeyboardInterrupt

    stopped = make(backend=backend, observers=[stop])
    stopped.learn(tasks[0])
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(tasks[1])
    resumed = Learner.load(tmp_path, Net(classes=3), optimizer=adam, backend=backend)
    x, _ = pictures(*KINDS, each=4)
    assert torch.equal(resumed.predict(x).probabilities, stopped.predict(x).probabilities)
    for t in tasks[1:]:
        resumed.learn(t)
    assert resumed.classes.names == whole.classes.names
    assert torch.equal(resumed.predict(x).probabilities, whole.predict(x).probabilities)
    assert resumed.save(tmp_path / "again").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_before_a_class_came_is_gone_back_to(backend: str) -> None:
    learner = make(backend=backend, average=0.2)
    learner.learn(task("cat", "dog"))
    before = copy.deepcopy(learner.checkpoint_state())
    learner.learn(task("fox", 7))
    learner.restore(before)
    assert tree.difference(before, learner.checkpoint_state()) is None
    assert learner.predict(pictures("cat")[0]).probabilities.shape[1] == 2
    whole = make(backend=backend, average=0.2)
    for kinds in (("cat", "dog"), ("fox", "éléphant")):
        whole.learn(task(*kinds))
    learner.learn(task("fox", "éléphant"))
    assert tree.difference(whole.checkpoint_state(), learner.checkpoint_state()) is None


def test_classes_that_were_named_are_not_given_up_for_a_state() -> None:
    learner, other = (make(classes=names) for names in (("cat", "dog", "fox"), ()))
    other.learn(task("cat", "dog"))
    with pytest.raises(CheckpointError, match="the checkpoint is of other classes"):
        learner.restore(copy.deepcopy(other.checkpoint_state()))


def test_our_own_network_is_made_again_with_its_columns(tmp_path: Path) -> None:
    learner = Learner(ConvNet(1, 2, 8), methods.ER(16), Static(0.5), lr=0.05, classes=(), backend="reference")
    learner.learn(task("cat", "dog"))
    learner.save(tmp_path)
    again = Learner.load(tmp_path, backend="reference")
    x, _ = pictures("cat", "dog", each=4)
    assert torch.equal(again.predict(x).probabilities, learner.predict(x).probabilities)
    again.learn(task("fox"))
    assert again.classes.names == ["cat", "dog", "fox"]


def test_a_head_that_knows_classes_already_keeps_their_rows() -> None:
    model = Net(classes=2)
    rows = model.classifier.weight.detach().clone()
    learner = Learner(model, methods.ER(16), classes=["dog", "cat"], backend="reference")
    assert torch.equal(model.classifier.weight, rows)
    learner.learn(task("cat", "fox"))
    assert learner.classes.names == ["dog", "cat", "fox"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: make(methods.LwF(), sparsifier=Static(0.5)), "these follow new ones: finetune, er"),
        (lambda: make(classes=["a", "a", "b"]), "'a' is named twice"),
        (lambda: make(classes=["a"]), "1 classes are named, but the model has 3 logits"),
        (lambda: make(classes=[1.5]), r"class name 1\.5 is not allowed"),
        (lambda: make(sparsifier=Static(0.5, prunable=["classifier"])), "cannot be pruned"),
        (lambda: make(classes=None).learn(task("cat")), "'cat' is new, but the number of logits is fixed"),
        (lambda: make().learn(replace(blobs()[0], column_names=())), "make_task"),
        (lambda: make().predict(torch.rand(1, 2, 6, 6)), "learn a task first"),
    ],
)  # fmt: skip
def test_what_cannot_grow_is_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        change()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 2), [1, 2], "3 training inputs but 2 training labels"),
        (torch.rand(3, 2), [0.5, 1.0, 2.0], "no multi-label or regression"),
        (torch.rand(3, 2), torch.eye(3), "no multi-label or regression"),
        (torch.rand(3, 2), [True, False, True], "no multi-label or regression"),
        (torch.rand(3, 2), np.array(["a", None, "b"], dtype=object), "label None is a NoneType"),
        (torch.full((3, 2), float("nan")), ["a", "b", "c"], "NaN or infinite"),
        (torch.rand(0, 2), [], "non-empty"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        streams.make_task(x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "second"), [(7, "7"), ("7", 7)])
def test_a_class_is_written_in_one_way(first: Any, second: Any) -> None:
    """As strings from a table and as numbers from a program: two columns for one class."""
    x, _ = pictures("cat", each=4)
    learner = make(epochs=1)
    learner.learn(streams.make_task(x, [first] * 4))
    for meets in (lambda: learner.learn(streams.make_task(x, [second] * 4)), lambda: learner.observe(x, [second] * 4)):
        with pytest.raises(DataError, match="there is a class 7 and a class '7': one class must be written in one way"):
            meets()
    assert learner.classes.names == [first]
    with pytest.raises(ConfigError, match="one class must be written in one way"):
        make(classes=(0, first, second))


def test_integers_of_a_sensor_become_floats_as_they_are() -> None:
    arrived = streams.make_task(np.array([[-300, 5], [7, 8]], dtype=np.int16), ["a", "b"])
    assert arrived.train.inputs.tolist() == [[-300.0, 5.0], [7.0, 8.0]]


def test_a_fixed_head_predicts_by_number_and_by_task(tmp_path: Path) -> None:
    learner = make_learner(method=methods.PackNet(), sparsifier=None)
    for t in blobs():
        learner.learn(t)
    learner.save(tmp_path)
    again = Learner.load(tmp_path, make_learner().model, optimizer=adam, backend="reference")
    x = blobs()[0].test.inputs
    answer = again.predict(x, task=0)
    assert answer.names == (0, 1, 2, 3)
    right = (answer.columns == blobs()[0].test.labels).float().mean()
    assert 100 * right == pytest.approx(learner.evaluate().task_il[0], abs=1e-3)  # type: ignore[index]
    with pytest.raises(ConfigError, match="answers for one task"):
        again.predict(x)
    with pytest.raises(ConfigError, match="task 2 is not known; allowed: 0 to 1"):
        again.predict(x, task=2)
    with pytest.raises(ConfigError, match="task '0' is not known; allowed: 0 to 1"):
        again.predict(x, task="0")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"not take these inputs, float32 \[2, 5\] \(.*one sample x is x\[None\]\): "):
        again.predict(torch.rand(2, 5), task=0)
