"""Every method on real digits: it learns, in the expected order, under SparCL too, and goes on where it stopped."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import Net, blobs

from sparcl import Accuracy, Learner, SparCL, methods, nn
from sparcl.errors import ConfigError
from sparcl.methods import EWC, METHODS, check_combination
from sparcl.methods.settings import published
from sparcl.sparsity import SET, SNIP, SPARSIFIERS, RigL, Static, find
from sparcl.streams import seq_digits

RIVALS = ("er-ace", "ewc", "lwf", "agem", "icarl", "fdr", "packnet", "lps")


@cache
def on_digits(name: str, sparsity: float = 0.0) -> Accuracy:
    """Five tasks of seq-digits with a ConvNet of width 8, dense or under SparCL."""
    torch.manual_seed(0)
    stream = seq_digits(limit_per_class=50)
    learner = Learner(
        nn.build("convnet", 10, stream.input_shape, 8),
        METHODS[name](),
        SparCL(sparsity) if sparsity else None,
        lr=published("seq-digits", name, 200)["lr"],
        epochs=6,
        batch_size=16,
        drop_last=True,  # joint's last batch has four images, and its step is the last before the evaluation
        backend="reference",
    )
    for task in stream.merged() if METHODS[name].learns_all_at_once else stream:
        learner.learn(task)
    return learner.evaluate(stream)


def class_il(accuracy: Accuracy) -> float:
    assert accuracy.class_il is not None
    return mean(accuracy.class_il)


def test_in_class_il_joint_is_above_replay_above_finetune() -> None:
    joint, replay, finetune = (class_il(on_digits(name)) for name in ("joint", "er", "finetune"))
    assert joint > replay + 3.0 > finetune + 30.0


@pytest.mark.parametrize("name", RIVALS)
def test_each_rival_learns_the_digits(name: str) -> None:
    accuracy = on_digits(name)
    assert mean(accuracy.task_il) > 65.0
    if "class-il" in METHODS[name].scenarios:
        assert class_il(accuracy) > class_il(on_digits("finetune")) - 5.0
    else:
        assert accuracy.class_il is None


def on_the_first_task(method: methods.Method) -> list[torch.Tensor]:
    """What the method answers to the first task's test samples, logits [N, 4], after it and after the second."""
    stream = blobs(2, per_class=50)
    torch.manual_seed(0)
    model = nn.build("convnet", 4, stream.input_shape, 8)
    learner = Learner(model, method, lr=0.1, epochs=6, batch_size=10, drop_last=True, backend="reference")
    answers = []
    for task in stream:
        learner.learn(task)
        learner.model.eval()
        with torch.no_grad():
            answers.append(method.predict(stream[0].test.inputs, stream[0]))
    return answers


@pytest.mark.parametrize("name", ["er-ace", "agem", "icarl", "fdr"])
def test_no_rival_with_a_memory_is_fine_tuning_in_disguise(name: str) -> None:
    labels = blobs(2, per_class=50)[0].test.labels

    def forgotten(method: methods.Method) -> float:
        before, after = (float(F.cross_entropy(logits, labels)) for logits in on_the_first_task(method))
        return after - before

    assert forgotten(METHODS[name]()) < 0.5 * forgotten(methods.Finetune())


def test_ewc_is_fine_tuning_that_is_held_back_by_its_penalty_alone() -> None:
    """What it computes of the past is test_ewc's; here: that the Learner's steps feel it, and nothing else."""
    first, fine_tuned = on_the_first_task(methods.Finetune())
    for strength in (0.0, 1000.0):
        before, after = on_the_first_task(EWC(strength=strength))
        assert torch.equal(before, first)  # there is no past in the first task
        assert torch.equal(after, fine_tuned) == (strength == 0.0)


def test_lwf_is_held_back_by_its_distillation() -> None:
    (first, without), (before, with_it) = (on_the_first_task(methods.LwF(alpha=alpha)) for alpha in (0.0, 3.0))
    assert torch.equal(before, first)
    assert not torch.equal(with_it, without)


@pytest.mark.parametrize("name", ["packnet", "lps"])
def test_what_a_part_has_learned_never_changes(name: str) -> None:
    before, after = on_the_first_task(METHODS[name]())
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["er-ace", "fdr", "icarl", "agem"])
def test_each_rehearsal_host_learns_the_digits_under_sparcl(name: str) -> None:
    assert mean(on_digits(name, 0.5).task_il) > 65.0


@pytest.mark.parametrize("kind", [Static, SET, SNIP, RigL])
def test_each_rival_sparsifier_trains_derpp_at_exactly_its_sparsity(kind: type[Static]) -> None:
    stream = blobs(2)
    torch.manual_seed(0)
    learner = Learner(nn.ConvNet(4, 2, 8), methods.DERpp(20), kind(0.5), lr=0.1, epochs=4, batch_size=10)
    for task in stream:
        learner.learn(task)
        for layer in learner.sparsifier.layers:
            assert len(layer.index) == round(0.5 * math.prod(layer.shape))
    assert class_il(learner.evaluate()) > 80.0


@pytest.mark.parametrize(
    ("method", "sparsifier", "message"),
    [
        ("packnet", "static", "method packnet prunes the network itself: use sparsifier dense, not static"),
        ("lps", "sparcl", "method lps prunes the network itself: use sparsifier dense, not sparcl"),
        ("ewc", "rigl", "method ewc .* cannot follow the moving masks of rigl: use sparsifier dense, static or snip"),
        ("ewc", "sparcl", "method ewc .* cannot follow the moving masks of sparcl"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_before_any_work(method: str, sparsifier: str, message: str) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        check_combination(method, sparsifier)
    with pytest.raises(ConfigError, match=message):
        Learner(model, METHODS[method](), find(sparsifier)())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_all_other_combinations_are_accepted() -> None:
    refused = []
    for method in METHODS:
        for sparsifier in ("dense", "sparcl", "static", "set", "snip", "rigl"):
            try:
                check_combination(method, sparsifier)
            except ConfigError:
                refused.append((method, sparsifier))
    pruning = ("sparcl", "static", "set", "snip", "rigl")
    assert sorted(refused) == sorted(
        [("ewc", s) for s in ("sparcl", "set", "rigl")] + [(m, s) for m in ("packnet", "lps") for s in pruning]
    )
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        check_combination("magic", "dense")


@pytest.mark.parametrize("name", ["der", "derpp", "er-ace", "agem", "fdr"])
def test_one_remembered_sample_cannot_be_replayed_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=f"buffer size 1 is not allowed for {name}: it replays alone, use 2 or more"):
        METHODS[name](1)  # type: ignore[call-arg]


class PowerCutError(Exception):
    """The run is over, wherever it stands."""


def learn(learner: Learner, stop: int | None = None) -> None:
    """Learn two tasks, or what is left of them; stop for good after so many steps."""
    steps = 0

    def look(event: str, figures: dict[str, Any]) -> None:
        del figures
        nonlocal steps
        steps += event == "step.end"
        if event == "step.end" and steps == stop:
            raise PowerCutError

    learner.observers.append(look)
    for task in blobs(2, flip=True)[learner.learned :]:
        learner.learn(task)


@pytest.mark.parametrize("stop", [5, 16, 21])  # of 24 steps: in the first task, and early and late in the second
@pytest.mark.parametrize("name", [*RIVALS, "static", "set", "rigl", "snip"])
def test_a_run_loaded_from_its_checkpoint_ends_in_the_same_bits(name: str, stop: int, tmp_path: Path) -> None:
    def fresh() -> Learner:
        sparsifier = SPARSIFIERS[name](0.5) if name in SPARSIFIERS else None
        method = METHODS[name]() if name in METHODS else methods.DERpp(8)
        return Learner(Net(), method, sparsifier, lr=0.1, epochs=3, batch_size=10, backend="reference")

    whole, first = fresh(), fresh()
    learn(whole)
    with pytest.raises(PowerCutError):
        learn(first, stop)
    first.save(tmp_path)
    second = Learner.load(tmp_path, Net(seed=1), backend="reference")
    learn(second)
    for (key, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    stream = blobs(2)
    whole.model.eval()
    second.model.eval()
    for task in stream:
        x = task.test.inputs
        assert torch.equal(whole.method.predict(x, task), second.method.predict(x, task))


def test_ewc_works_where_the_mask_stays() -> None:
    stream = blobs(2)
    learner = Learner(Net(), EWC(), Static(0.5), lr=0.1, epochs=2, batch_size=10)
    for task in stream:
        learner.learn(task)
    assert torch.isfinite(torch.stack([f.sum() for f in learner.method.fisher])).all()
