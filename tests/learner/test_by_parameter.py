"""Methods that remember something of each parameter, on the native backend and from one backend to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toys import PRUNABLE_OF_NET, Net, blobs

from sparcl import kernels
from sparcl.checkpoint import State, tree
from sparcl.errors import CheckpointError
from sparcl.learner import Learner
from sparcl.methods import EWC, LPS, Method, PackNet
from sparcl.methods.partition import PartitionMethod
from sparcl.sparsity import Pattern, Static

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")

ACROSS = [("reference", "native"), ("native", "reference")]
MADE: dict[str, tuple[Callable[[], Method], Callable[[], Any]]] = {
    "packnet": (PackNet, lambda: None),
    "lps": (LPS, lambda: None),
    "ewc": (EWC, lambda: None),
    "ewc, static": (EWC, lambda: Static(0.5)),
    "ewc, static in blocks": (EWC, lambda: Static(0.5, pattern=Pattern(2))),
}


def made(name: str, backend: str) -> Learner:
    method, sparsifier = MADE[name]
    return Learner(Net(), method(), sparsifier(), lr=0.05, epochs=4, batch_size=8, backend=backend)


def saved_inside_a_task(learner: Learner, at: int) -> tuple[State, list[torch.Tensor]]:
    """The state after so many steps, all tensors its own; and the weights at the end of both tasks."""
    states: list[State] = []

    def save(event: str, _: dict[str, Any]) -> None:
        if event == "step.end" and learner.steps == at:
            states.append(tree.unflatten(*copied(learner.checkpoint_state())))

    learner.observers.append(save)
    for task in blobs():
        learner.learn(task)
    return states[0], weights(learner)


def copied(state: State) -> tuple[Any, dict[str, torch.Tensor]]:
    plain, tensors = tree.flatten(state)
    return plain, {name: tensor.clone() for name, tensor in tensors.items()}


def weights(learner: Learner) -> list[torch.Tensor]:
    state = learner.checkpoint_state()
    return [state["model"][k] for k in sorted(state["model"])] + [v["values"] for v in state["layers"].values()]


@pytest.mark.parametrize("name", ["packnet", "lps"])
def test_both_backends_divide_the_same_layers(name: str) -> None:
    divided = {}
    for backend in ("reference", "native"):
        learner = made(name, backend)
        for task in blobs():
            learner.learn(task)
        method = learner.method
        assert isinstance(method, PartitionMethod)
        owners = {method.dense[i]: [int((method.owner[i] == t).sum()) for t in range(3)] for i in method.divided}
        divided[backend] = owners, {k: tuple(v.shape) for k, v in method.answer_state(blobs()[0]).items()}
    assert divided["native"] == divided["reference"]
    assert {f"{layer}.weight" for layer in PRUNABLE_OF_NET} < {name for name, _ in divided["native"][0]}


@pytest.mark.parametrize("name", ["packnet", "lps"])
def test_a_task_has_the_same_answers_on_both_backends(name: str) -> None:
    answers = []
    for backend in ("reference", "native"):
        learner = made(name, backend)
        learner.learn(blobs()[0])
        answers.append(learner.method.predict(blobs()[0].test.inputs, blobs()[0]))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("at", [7, 17, 20, 28])
@pytest.mark.parametrize(("saves", "loads"), ACROSS)
@pytest.mark.parametrize("name", MADE)
def test_what_one_backend_remembers_the_other_goes_on_with(name: str, saves: str, loads: str, at: int) -> None:
    state, at_the_end = saved_inside_a_task(made(name, saves), at)
    other = made(name, loads)
    other.restore(state)
    assert tree.difference(copied(state)[0], copied(other.checkpoint_state())[0]) is None
    again = copied(other.checkpoint_state())[1]
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in copied(state)[1].items()}
    for task in blobs()[other.learned :]:
        other.learn(task)
    for one, two in zip(at_the_end, weights(other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("saves", "loads"), ACROSS)
def test_what_is_remembered_of_another_layer_is_refused(saves: str, loads: str) -> None:
    learner = made("ewc", saves)
    learner.learn(blobs()[0])
    state = learner.checkpoint_state()
    place = next(k for k, v in state["learner"]["method"]["fisher"].items() if v.dim() == 4 and v.shape[0] == 8)
    state["learner"]["method"]["fisher"][place] = torch.zeros(8, 1, 3, 3)
    with pytest.raises(CheckpointError, match=r"EWC's fisher in the checkpoint is torch.float32 \[8, 1, 3, 3\]"):
        made("ewc", loads).restore(state)
