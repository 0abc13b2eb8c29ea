"""The Learner: seeds, resuming, small tasks, and what it reports."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import blobs, make_learner

from sparcl import DDR, Learner, SparCL, seeds
from sparcl.errors import ConfigError
from sparcl.methods import DER, ER, Batch, DERpp, Finetune, Method
from sparcl.nn import build
from sparcl.streams import Samples, Task, Transform, seq_digits

Told = list[tuple[str, dict[str, Any]]]


def digest(learner: Learner) -> str:
    """SHA-256 over weights, masks and optimizer state."""
    sha = hashlib.sha256()
    for tensor in learner.model.state_dict().values():
        sha.update(tensor.numpy().tobytes())
    for layer in learner.sparsifier.layers:
        sha.update(layer.index.numpy().tobytes())
    for state in learner.optimizer.state.values():
        for value in state.values():
            sha.update(torch.as_tensor(value).numpy().tobytes())
    return sha.hexdigest()


def trained(seed: int) -> str:
    learner = make_learner(seed)
    for task in blobs(flip=True):
        learner.learn(task)
    return digest(learner)


# --- seeds ------------------------------------------------------------------------------------------------------------


def in_a_process(seed: int) -> str:
    code = f"import torch; torch.set_num_threads(1); import test_learner; print(test_learner.trained({seed}))"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_same_seed_same_bits_in_two_processes_and_another_seed_another_result() -> None:
    first = trained(0)
    assert first == in_a_process(0)
    assert first != trained(1)


def test_no_random_number_comes_from_outside_the_seed() -> None:
    expected = trained(0)
    learner = make_learner(0)
    for task in blobs(flip=True):
        torch.manual_seed(12345 + task.index)  # the generators that anybody may draw from
        np.random.seed(12345)
        random.seed(12345)
        learner.learn(task)
        learner.evaluate()
    assert digest(learner) == expected


class Spy(DER):
    """Notes what the seed decides."""

    def __init__(self) -> None:
        super().__init__(12)
        self.noted: dict[str, Any] = {}

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        self.noted.setdefault("order", batch.ids.tolist())
        self.noted.setdefault("augmentation", batch.inputs.flatten().tolist())
        torch.rand(())  # a model that draws, dropout for one
        self.noted["model"] = torch.initial_seed()
        return loss, logits

    def task_importance_loss(self, batch: Batch) -> Tensor:
        self.noted.setdefault("importance", batch.ids.tolist())
        return super().task_importance_loss(batch)


def test_every_source_of_randomness_obeys_the_seed() -> None:
    def noted(seed: int) -> dict[str, Any]:
        spy = Spy()
        learner = make_learner(seed, method=spy, sparsifier=SparCL(0.7, first_mask="random"))
        masks = [layer.index.tolist() for layer in learner.sparsifier.layers]
        learner.learn(blobs(flip=True)[0])
        sparcl = learner.sparsifier
        assert isinstance(sparcl, SparCL)
        assert spy.buffer.labels is not None
        assert spy.buffer.inputs is not None
        return {
            **spy.noted,
            "masks": masks,
            "buffer": spy.buffer.inputs.flatten().tolist(),
            "removed": sparcl.ddr.kept.tolist(),
        }

    first, again, other = noted(0), noted(0), noted(1)
    assert first == again
    assert [key for key in first if first[key] == other[key]] == []


def test_named_generators_are_independent_and_reproducible() -> None:
    names = ["order", "augment", "importance", "method", "tdm", "dgm", "ddr"]
    derived = {seeds.derive(seed, name) for seed in (0, 1, -1) for name in names}
    assert len(derived) == 3 * len(names)
    assert all(0 <= value < 2**63 for value in derived)
    draws = [torch.rand(4, generator=seeds.generator(7, "order")).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


# --- interrupted and resumed ------------------------------------------------------------------------------------------


class InterruptionError(Exception):
    """Raised by an observer, as a signal would."""


@pytest.mark.parametrize(
    ("method", "pattern"),
    [(lambda: DERpp(12), "unstructured"), (lambda: ER(12), "block")],
    ids=["derpp", "er blocks"],
)
def test_interrupted_and_resumed_is_uninterrupted(method: Callable[[], Method], pattern: str) -> None:
    stream = blobs(flip=True)

    def fresh(seed: int = 0) -> Learner:
        return make_learner(seed, method=method(), sparsifier=SparCL(0.7, pattern=pattern))

    whole = fresh()
    steps: list[int] = []
    whole.observers.append(lambda event, _: steps.append(1) if event == "step.end" else None)
    for task in stream:
        whole.learn(task)
    expected = digest(whole)

    for stop_at in (4, len(steps) // 2 + 1, len(steps) - 1):
        learner, left = fresh(), [stop_at]

        def interrupt(event: str, _: dict[str, Any], left: list[int] = left) -> None:
            left[0] -= event == "step.end"
            if left[0] == 0:
                raise InterruptionError

        learner.observers.append(interrupt)
        with contextlib.suppress(InterruptionError):
            for task in stream:
                learner.learn(task)
        assert learner.position is not None
        state = copy.deepcopy(learner.checkpoint_state())
        torch.manual_seed(999)
        resumed = fresh(seed=5)  # all that its seed decides is replaced by the state
        resumed.seed = resumed.settings["seed"] = 0
        resumed.restore(state)
        for task in stream[resumed.learned :]:
            resumed.learn(task)
        assert digest(resumed) == expected, stop_at
        assert resumed.evaluate(stream).class_il == whole.evaluate(stream).class_il


def test_a_state_taken_between_tasks_or_before_the_first_goes_on_as_well() -> None:
    stream = blobs(flip=True)
    expected = trained(0)
    for learned in (0, 1):
        learner = make_learner()
        for task in stream[:learned]:
            learner.learn(task)
        resumed = make_learner()
        resumed.restore(copy.deepcopy(learner.checkpoint_state()))
        assert resumed.position is None
        for task in stream[learned:]:
            resumed.learn(task)
        assert digest(resumed) == expected
        if learned:
            with pytest.raises(ConfigError, match="name the tasks"):
                resumed.evaluate()
        assert len(resumed.evaluate(stream).task_il) == 2


# --- the epoch --------------------------------------------------------------------------------------------------------


def samples_of(learner: Learner) -> list[tuple[int, int]]:
    """Fills with (epoch, samples) at each step."""
    steps: list[tuple[int, int]] = []
    learner.observers.append(lambda event, f: steps.append((f["epoch"], f["samples"])) if event == "step.end" else None)
    return steps


def test_an_epoch_sees_every_sample_once_but_for_the_last_partial_batch() -> None:
    seen: list[int] = []

    class Noting(Finetune):
        def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
            seen.extend(batch.ids.tolist())
            return super().loss(batch)

    learner = make_learner(method=Noting(), sparsifier=None, epochs=2, batch_size=9, drop_last=True)
    learner.learn(blobs()[0])  # 40 samples: four batches of 9
    assert len(seen) == 2 * 36
    assert len(set(seen[:36])) == len(set(seen[36:])) == 36
    assert seen[:36] != seen[36:]


def test_removed_samples_shorten_the_epochs_by_exactly_the_plan() -> None:
    learner = make_learner(sparsifier=DDR(0.5), epochs=10, batch_size=10)
    steps = samples_of(learner)
    learner.learn(blobs(per_class=50)[0])  # 100 samples; 12, 13, 13 and 12 leave at the starts of epochs 1 to 4
    by_epoch = [sum(1 for epoch, _ in steps if epoch == e) for e in range(10)]
    assert by_epoch == [10, 8, 7, 6, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("samples", [2, 20, 33])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_small_task_is_trained_on_to_its_end(samples: int, share: float) -> None:
    task = blobs(per_class=40)[0]
    small = Task(
        0, task.classes, Samples(task.train.inputs[:samples], task.train.labels[:samples]), task.test, Transform()
    )
    learner = make_learner(sparsifier=SparCL(0.7, samples=share), epochs=10, batch_size=32)
    steps = samples_of(learner)
    learner.learn(small)
    assert {epoch for epoch, _ in steps} == set(range(10))
    assert all(2 <= count <= 32 for _, count in steps)
    assert steps[-1][1] == samples - learner.sparsifier.removed
    assert learner.sparsifier.removed == min(round(share * samples), samples - 2)


def test_sparse_from_the_first_step_and_back_at_s_after_every_task() -> None:
    learner = make_learner(sparsifier=SparCL(0.9))
    active: list[int] = []
    layers = learner.sparsifier.layers
    learner.observers.append(
        lambda event, _: (
            active.append(sum(len(la.index) for la in layers)) if event in ("step.begin", "task.end") else None
        )
    )
    target = sum(round(0.1 * la.parameter.numel()) for la in layers)
    for task in blobs():
        learner.learn(task)
    half = len(active) // 2
    assert set(active[:half]) == {target}
    assert active[half] > target  # the second task expands
    assert active[-1] == target
    for layer in layers:
        assert int((layer.parameter != 0).sum()) <= len(layer.index)


def test_what_the_sparsifier_asks_for_is_told_apart_from_training() -> None:
    told: Told = []
    learner = make_learner(epochs=6, observers=[lambda event, figures: told.append((event, figures))])
    for task in blobs():
        learner.learn(task)
    events = [event for event, _ in told]
    assert events.count("importance.begin") == events.count("importance.end") > 0
    assert events.count("step.begin") == events.count("step.end")
    for task in (0, 1):
        begin, end = (i for i, (e, f) in enumerate(told) if e in ("task.begin", "task.end") and f["task"] == task)
        fired = set(events[begin:end])
        assert {"dgm.choose", "ddr.remove", "tdm.update"} <= fired
        assert ("tdm.expand" in fired) == (task > 0)


def test_it_learns_and_replay_forgets_less_than_fine_tuning() -> None:
    stream = seq_digits()
    results = {}
    for method in (Finetune(), DERpp(200)):
        torch.manual_seed(0)
        model = build("convnet", 10, stream.input_shape, width=16)
        sparsifier = SparCL(0.9, first_mask="random")
        settings = {"sparsifier": sparsifier, "epochs": 2, "batch_size": 32, "optimizer": None}  # plain SGD
        learner = make_learner(model=model, method=method, **settings)
        for task in stream:
            learner.learn(task)
        results[method.name] = learner.evaluate()
    class_il = {name: sum(r.class_il or ()) / 5 for name, r in results.items()}
    assert class_il["derpp"] > class_il["finetune"] + 15
    assert min(results["derpp"].task_il) > 80


# --- evaluation -------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers with the logits that are its inputs; in training mode it would answer zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * (0.0 if self.training else 1.0)


def test_class_il_and_task_il_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 2, 0], [1, 3, 9, 0], [2, 1, 0, 0], [0, 5, 4, 4.5]])
    labels = torch.tensor([0, 1, 1, 2])
    tasks = [
        Task(t, classes, Samples(logits, labels), Samples(logits[a:b], labels[a:b]), Transform())
        for t, classes, a, b in ((0, (0, 1), 0, 3), (1, (2, 3), 3, 4))
    ]
    learner = Learner(Fixed(), backend="reference")
    accuracy = learner.evaluate(tasks)
    # sample 0 right in both; 1 loses to class 2, outside its task; 2 wrong in both; 3 loses to class 1 and to class 3
    assert accuracy.class_il == pytest.approx((100 / 3, 0.0))
    assert accuracy.task_il == pytest.approx((200 / 3, 0.0))
    assert str(accuracy) == "Class-IL 16.67 %, Task-IL 33.33 % (mean of 2 tasks)"
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        learner.evaluate()


def test_tasks_of_unequal_size_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 2, 0], [1, 3, 9, 0], [2, 1, 0, 4], [0, 5, 4, 4.5]])
    labels = torch.tensor([0, 1, 2, 3])
    tasks = [
        Task(t, classes, Samples(logits, labels), Samples(logits[a:b], labels[a:b]), Transform())
        for t, classes, a, b in ((0, (0, 1, 2), 0, 3), (1, (3,), 3, 4))
    ]
    accuracy = Learner(Fixed(), backend="reference").evaluate(tasks)
    # 1 loses to class 2, of its own task; 2 is wrong in both; 3 loses to class 1, and is alone in its task
    assert accuracy.class_il == pytest.approx((100 / 3, 0.0))
    assert accuracy.task_il == pytest.approx((100 / 3, 100.0))
    assert accuracy.confusion == ((1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 0))


def test_evaluation_changes_nothing() -> None:
    stream = blobs(flip=True)
    learner = make_learner()
    learner.learn(stream[0])
    before, state = digest(learner), learner.checkpoint_state()["learner"]["generators"]
    learner.evaluate(stream)
    assert digest(learner) == before
    after = learner.checkpoint_state()["learner"]["generators"]
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert all(
        not p.requires_grad or p.grad is None or bool(torch.isfinite(p.grad).all()) for p in learner.model.parameters()
    )


def test_an_optimizer_may_go_through_the_parameters_more_than_once() -> None:
    learner = make_learner(
        optimizer=lambda p: torch.optim.SGD(
            [
                {"params": [q for q in p if q.dim() > 1], "lr": 0.1},
                {"params": [q for q in p if q.dim() <= 1], "lr": 0.2},
            ]
        )
    )
    held = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in learner.model.parameters()}


# --- what importance is asked of --------------------------------------------------------------------------------------


class Apart(DERpp):
    """Each loss says which one it is; the samples that importance is asked of are noted."""

    def __init__(self) -> None:
        super().__init__(12)
        self.asked: list[Tensor] = []

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        return loss * 0.0 + 7.0, logits

    def task_importance_loss(self, batch: Batch) -> Tensor:
        self.asked.append(batch.ids)
        return super().task_importance_loss(batch) * 0.0 + 1.0

    def replay_importance_loss(self) -> Tensor | None:
        loss = super().replay_importance_loss()
        return None if loss is None else loss * 0.0 + 2.0


class Asks(DDR):
    """Asks for the losses that it was handed at every step."""

    def __init__(self) -> None:
        super().__init__(0.6)
        self.told: list[tuple[float, float | None, float]] = []

    def begin_task(self, index: int, *, samples: int, epochs: int, losses: Any = None) -> None:
        super().begin_task(index, samples=samples, epochs=epochs, losses=losses)
        self.losses = losses

    def begin_step(self, step: int, spent: float | None = None) -> None:
        super().begin_step(step, spent)
        replay, objective = self.losses.replay(), self.losses.objective()
        values = self.losses.task().item(), None if replay is None else replay.item(), objective.item()
        self.told.append(values)


def test_importance_is_asked_of_each_loss_by_itself() -> None:
    asks = Asks()
    learner = make_learner(method=Apart(), sparsifier=asks)
    learner.learn(blobs()[0])
    assert asks.told[0] == (1.0, None, 7.0)
    assert set(asks.told[1:]) == {(1.0, 2.0, 7.0)}


def test_importance_is_asked_of_samples_that_are_still_in_the_task() -> None:
    method, asks = Apart(), Asks()
    learner = make_learner(method=method, sparsifier=asks, epochs=10)
    learner.learn(blobs()[0])
    assert asks.removed == 24
    assert len(method.asked) > 20
    late = method.asked[-10:]  # all removals are over
    assert len(torch.cat(late).unique()) == 16 == int(asks.kept.sum())
    assert all(bool(asks.kept[ids].all()) for ids in late)
