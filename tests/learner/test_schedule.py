"""The learning rate over a task, and gradients clipped: what the optimizer was told, in the checkpoint, to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toys import Net, blobs, make_learner

from sparcl import Learner, kernels
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.schedule import Rate, parse
from sparcl.methods import ER, Finetune
from sparcl.sparsity import SparCL, Sparsifier


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def rates(learner: Learner) -> list[float]:
    """Filled with the rate of every step that the optimizer makes."""
    told: list[float] = []
    learner.optimizer.register_step_pre_hook(lambda made, *_: told.append(made.param_groups[0]["lr"]))
    return told


@pytest.mark.parametrize(
    ("name", "share", "factor"),
    [
        ("constant", 0.9, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 0.75, 0.5 * (1 - math.sqrt(0.5))),
        ("step(0.5)", 0.49, 1.0),
        ("step(0.5)", 0.5, 0.1),
        ("step( 0.5, 0.75 )", 0.8, 0.1**2),
        ("step(0.5,0.75,by=0.5)", 0.8, 0.25),
        ("step(0.25, by=3)", 0.8, 3.0),
    ],
)
def test_a_schedule_by_name(name: str, share: float, factor: float) -> None:
    assert parse(name)(share) == pytest.approx(factor)


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "step",
        "step()",
        "step(1)",
        "step(0)",
        "step(0.5, 0.5)",
        "step(nan)",
        "step(0.5, by=-1)",
        "step(by=2)",
        "step(0.2, 0.4, by=1e20)",
    ],
)
def test_what_is_no_schedule_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match="use constant, cosine, step"):
        parse(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr_schedule": 3}, "or a function of the share spent"),
        ({"lr_schedule": lambda share: -share}, "gives -0.5 where 0.5 of the budget is spent"),
        ({"lr_schedule": lambda share: float("nan") * share}, "gives nan"),
        ({"lr_schedule": lambda share: None if share else 1.0}, "gives None"),
        ({"warmup": 1.0}, "0 to less than 1"),
        ({"warmup": -0.1}, "0 to less than 1"),
        ({"warmup": "long"}, "0 to less than 1"),
        ({"clip_grad_norm": 0.0}, "above 0"),
        ({"clip_grad_norm": float("nan")}, "above 0"),
        ({"clip_grad_norm": True}, "above 0"),
        ({"lr_schedule": "cosine", "optimizer": torch.optim.Rprop}, "no effect on Rprop"),
    ],
)
def test_bad_values_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        Learner(Net(), Finetune(), Sparsifier(), **options)
    assert "\n" not in str(refusal.value)


def test_warmup_rises_from_a_hundredth_and_multiplies_the_schedule() -> None:
    rate = Rate("step(0.1)", 0.2)
    assert rate(0.0) == pytest.approx(0.01)
    assert rate(0.05) == pytest.approx(0.01 + 0.99 / 4)
    assert rate(0.15) == pytest.approx(0.1 * (0.01 + 0.99 * 0.75))
    assert rate(0.2) == pytest.approx(0.1)


@pytest.mark.parametrize("budget", [{"epochs": 2}, {"steps": 10}])
def test_the_rate_follows_the_share_of_each_task(budget: dict[str, int]) -> None:
    learner = make_learner(
        lr_schedule="cosine",
        optimizer=sgd,
        sparsifier=Sparsifier(),
        method=Finetune(),
        batch_size=8,
        **{"epochs": None} | budget,
    )
    told = rates(learner)
    for task in blobs():  # 40 samples a task: 5 steps an epoch
        learner.learn(task)
        assert learner.optimizer.param_groups[0]["lr"] == 0.1, "between steps it is the optimizer's own"
    one_task = [0.1 * 0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert told == pytest.approx([*one_task, *one_task])


def test_a_replayed_pace_gives_the_same_rates_and_bits() -> None:
    settings: dict[str, Any] = {"lr_schedule": "cosine", "warmup": 0.1, "clip_grad_norm": 0.5, "epochs": None}
    timed = make_learner(seconds=0.3, **settings)
    told = rates(timed)
    timed.learn(blobs()[0])
    again = make_learner(seconds=0.3, pace=timed.pace, **settings)
    told_again = rates(again)
    again.learn(blobs()[0])
    assert told == told_again
    assert len(set(told)) > 3
    assert all(torch.equal(a, b) for a, b in zip(timed.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("backend", ["reference", *(["native"] if kernels.available() else [])])
def test_they_are_in_the_checkpoint_and_training_goes_on_to_the_same_bits(tmp_path: Any, backend: str) -> None:
    stream = blobs()

    def make(**more: Any) -> Learner:
        settings = {"lr_schedule": "step(0.3, 0.6)", "warmup": 0.2, "clip_grad_norm": 0.3, "backend": backend}
        return make_learner(model=Net(), **settings | more)

    whole = make()
    for task in stream:
        whole.learn(task)
    killed = make(observers=[])

    def save(event: str, _: dict[str, Any]) -> None:
        if event == "step.end" and killed.steps == 7:
            killed.save(tmp_path)

    killed.observers.append(save)
    killed.learn(stream[0])
    settings = open_folder(tmp_path)["settings"]
    assert (settings["lr_schedule"], settings["warmup"], settings["clip_grad_norm"]) == ("step(0.3, 0.6)", 0.2, 0.3)
    again = Learner.load(tmp_path, Net(), backend=backend)
    assert again.steps == 7
    assert (again.rate.name, again.rate.warmup, again.settings["clip_grad_norm"]) == ("step(0.3, 0.6)", 0.2, 0.3)
    for task in stream:
        again.learn(task)
    assert whole.steps == again.steps
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"lr schedule is constant here, but 'step\(0.3, 0.6\)'"):
        make(lr_schedule=None).restore(open_folder(tmp_path))


def test_a_function_of_ones_own_is_given_again(tmp_path: Any) -> None:
    def falling(share: float) -> float:
        return 1 - share / 2

    learner = make_learner(model=Net(), lr_schedule=falling, sparsifier=Sparsifier())  # all epochs alike
    told = rates(learner)
    learner.learn(blobs()[0])
    assert told[0] == 0.01
    assert told[-1] == pytest.approx(0.01 * (1 - (len(told) - 1) / len(told) / 2))
    learner.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"pass Learner.load\(..., lr_schedule=\)"):
        Learner.load(tmp_path, Net())
    again = Learner.load(tmp_path, Net(), lr_schedule=falling)
    assert again.rate.schedule is falling
    with pytest.raises(CheckpointError, match="lr schedule is cosine here, but 'a function'"):
        make_learner(model=Net(), lr_schedule="cosine", sparsifier=Sparsifier()).restore(open_folder(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"), [("lr_schedule", 3), ("lr_schedule", "os:abort"), ("warmup", "x"), ("clip_grad_norm", -1.0)]
)
def test_what_a_checkpoint_says_of_them_is_checked(tmp_path: Any, name: str, value: Any) -> None:
    from sparcl.learner import making

    learner = make_learner(model=Net(), lr_schedule="cosine")
    learner.learn(blobs()[0])
    learner.save(tmp_path)
    state = open_folder(tmp_path)
    state["settings"][name] = value
    with pytest.raises(CheckpointError, match="in the checkpoint are not allowed"):
        making.make(state, Net(), None, None)


def test_without_them_a_checkpoint_is_as_before(tmp_path: Any) -> None:
    learner = make_learner(model=Net())
    learner.learn(blobs()[0])
    learner.save(tmp_path)
    assert not {"lr_schedule", "warmup", "clip_grad_norm"} & open_folder(tmp_path)["settings"].keys()


def norms(learner: Learner) -> list[float]:
    """Filled with the norm of all gradients at each step of the optimizer."""
    told: list[float] = []

    def look(made: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in made.param_groups for p in group["params"] if p.grad is not None]
        told.append(float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()))

    learner.optimizer.register_step_pre_hook(look)
    return told


def test_gradients_are_clipped_to_the_norm_of_what_moves() -> None:
    free = make_learner(model=Net(), optimizer=sgd)
    norm_of_free = norms(free)
    free.learn(blobs()[0])
    middle = sorted(norm_of_free)[len(norm_of_free) // 2]
    clipped = make_learner(model=Net(), optimizer=sgd, clip_grad_norm=middle)
    norm_of_clipped = norms(clipped)
    clipped.learn(blobs()[0])
    assert max(norm_of_free) > middle * 1.01
    assert max(norm_of_clipped) <= middle * 1.0001
    assert min(norm_of_clipped) < middle * 0.99, "smaller ones stay"
    assert norm_of_clipped[0] == pytest.approx(min(norm_of_free[0], middle), rel=1e-4)


@pytest.mark.skipif(not kernels.available(), reason="needs the compiled part")
def test_both_backends_clip_and_schedule_alike() -> None:
    told = {}
    for backend in ("reference", "native"):
        learner = make_learner(
            model=Net(), method=ER(12), sparsifier=SparCL(0.7), backend=backend, optimizer=sgd, clip_grad_norm=0.2,
            lr_schedule="cosine", epochs=1,
        )  # fmt: skip
        told[backend] = (norms(learner), rates(learner))
        learner.learn(blobs()[0])
    assert told["native"][1] == told["reference"][1]
    assert told["native"][0] == pytest.approx(told["reference"][0], rel=1e-3)
    assert max(told["native"][0]) <= 0.2001
