"""The whole method on both sides, from one file: the same draws, the same masks, choices and removals to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec

import made
import numpy as np
import pytest
import torch

from sparcl import Learner
from sparcl.checkpoint import model_file, tree
from sparcl.checkpoint.tree import State
from sparcl.cost.flops import Ledger
from sparcl.errors import CheckpointError
from sparcl.methods import DER, ER, DERpp, Finetune, Method
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import DDR, DGM, SNIP, TDM, SparCL, Sparsifier, Static
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.tdm import MAX_MOVED
from sparcl.streams import Task, make_task


@dataclass
class Case:
    """What is learned: a task in Python, the next one on both sides."""

    sparsifier: Callable[[], Sparsifier]
    method: Callable[[], Method]
    model: str = "convnet"
    options: dict[str, Any] = field(default_factory=lambda: {"epochs": 4})


def sgd(**options: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.02, weight_decay=1e-3, **options)


CASES = {
    "SparCL and DER++": Case(lambda: SparCL(0.6), lambda: DERpp(12, alpha=0.2)),
    "SparCL in blocks": Case(lambda: SparCL(0.5, pattern="block", block_size=4), lambda: ER(12), "resnet"),
    "a block or two in a layer": Case(
        lambda: SparCL(0.99, pattern="block", block_size=4, gradients=0.8), lambda: ER(12), "resnet"
    ),
    "blocks without DGM": Case(lambda: SparCL(0.5, pattern="block", block_size=2, gradients=0.0), lambda: ER(12)),
    "without DGM": Case(lambda: SparCL(0.6, gradients=0.0), lambda: DERpp(12, single_head=True)),
    "nearly dense": Case(lambda: SparCL(0.1, gradients=0.5, ddr_score="forgetting"), lambda: ER(12), "mlp"),
    "by magnitude": Case(lambda: SparCL(0.6, use_gradients=False), lambda: DER(12), "mlp", {"epochs": 3}),
    "no norms, one's own": Case(lambda: SparCL(0.6), lambda: DER(12), "own", {"epochs": 3}),
    "sums of convolutions": Case(lambda: SparCL(0.5), lambda: DERpp(12), "before", {"epochs": 3}),
    "sums of norms, a head behind a trace": Case(lambda: SparCL(0.5), lambda: ER(12), "torchvision", {"epochs": 3}),
    "what is read more than once": Case(lambda: SparCL(0.6, gradients=0.4), lambda: ER(12), "tangled"),
    "steps": Case(lambda: SparCL(0.6), lambda: ER(12), options={"steps": 30}),
    "steps, and removal": Case(lambda: SparCL(0.6, samples=0.3), lambda: ER(12), options={"steps": 30}),
    "TDM": Case(lambda: TDM(0.6, pattern=Pattern(2)), lambda: ER(12), options={"epochs": 3}),
    "DGM": Case(lambda: DGM(0.3, interval=2), Finetune, options={"epochs": 2}),
    "DDR": Case(lambda: DDR(0.5), lambda: ER(12), "mlp"),
    "SNIP, once pruned": Case(lambda: SNIP(0.6), lambda: ER(12), "mlp", {"epochs": 1}),
    "last batches": Case(
        lambda: SparCL(0.6), lambda: ER(12), options={"epochs": 3, "batch_size": 10, "drop_last": False}
    ),
    "momentum": Case(lambda: SparCL(0.6), lambda: ER(12), options={"epochs": 5, "optimizer": sgd(momentum=0.9)}),
    "an average": Case(lambda: SparCL(0.6), lambda: DERpp(12), options={"epochs": 4, "average": 0.2}),
    "an average beside Adam": Case(
        lambda: SparCL(0.6), lambda: ER(12), "resnet", {"epochs": 3, "average": 0.1, "optimizer": torch.optim.AdamW}
    ),
    "Nesterov": Case(
        lambda: SparCL(0.6), lambda: ER(12), options={"epochs": 4, "optimizer": sgd(momentum=0.5, nesterov=True)}
    ),
    "Adam": Case(
        lambda: SparCL(0.6),
        lambda: ER(12),
        options={"epochs": 5, "optimizer": lambda ps: torch.optim.Adam(ps, lr=0.002, weight_decay=1e-3)},
    ),
    "AdamW": Case(
        lambda: SparCL(0.6), lambda: ER(12), options={"epochs": 4, "optimizer": lambda ps: torch.optim.AdamW(ps)}
    ),
}


P = ParamSpec("P")


class Seed:
    """Of all that a test draws."""

    now = 4


def despite_rounding(test: Callable[P, None]) -> Callable[P, None]:
    """Where a test does not hold for its seed, it must for two others.

    Python and the program sum in other orders, and so do kinds of CPU and kernels that are compiled for a sanitizer:
    now and then a ReLU's sign or a rank falls the other way, and a few steps later weights are apart. That is by
    chance; what is wrong is so for every seed.
    """

    @functools.wraps(test)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            test(*args, **kwargs)
        except AssertionError:
            try:
                for Seed.now in (5, 6):
                    test(*args, **kwargs)
            finally:
                Seed.now = 4

    return tried


def learner_of(case: Case, **more: Any) -> Learner:
    torch.manual_seed(Seed.now - 1)
    options = {"batch_size": 8, "seed": Seed.now, **case.options, **more}
    options |= {} if "optimizer" in options else {"lr": 0.05}
    return Learner(made.MODELS[case.model](), case.method(), case.sparsifier(), backend="reference", **options)


def packed(task: Task, path: Path) -> Path:
    pack(task.train, made.CLASSES[:4], path)
    return path


def same(ours: State, theirs: State) -> None:
    """Masks, choices, generators, counts and all other state that is not of weights: equal; the weights near."""
    for name, layer in theirs["layers"].items():
        for key in ("index", "chosen"):
            assert tree.difference(ours["layers"][name][key], layer[key]) is None, (name, key)
    for part, value in theirs["learner"].items():
        if part not in ("method", "position", "average"):
            assert tree.difference(ours["learner"][part], value) is None, part
    near(ours["learner"].get("average", {}), theirs["learner"].get("average", {}))
    if "buffer" in theirs["learner"]["method"]:
        held, wanted = (s["learner"]["method"]["buffer"] for s in (ours, theirs))
        assert tree.difference({**held, "logits": 0}, {**wanted, "logits": 0}) is None
    near(ours, theirs)


def near(ours: Any, theirs: Any, path: str = "") -> None:
    """Floating point numbers within 1e-4 of each other, NaN where NaN is."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key, value in theirs.items():
            near(ours[key], value, f"{path}/{key}")
    elif isinstance(theirs, torch.Tensor) and theirs.is_floating_point():
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True), path


@pytest.mark.parametrize("name", list(CASES))
@despite_rounding
def test_a_task_is_learned_as_in_python(program: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    first, second, _ = made.stream()
    learner = learner_of(case)
    learner.learn(first)
    file = made.export(learner, tmp_path / "m.sparcl", first)
    ledger = Ledger(learner.model, learner.sparsifier.layers, made.SHAPE)
    learner.observers.append(ledger)
    masks = [layer.index for layer in learner.sparsifier.layers]
    learner.learn(second)
    done = made.run(program, "learn", file, packed(second, tmp_path / "s.sparcl"), "--threads", 2)
    assert (done.returncode, done.stderr) == (0, "")
    model = model_file.read(file)
    same(model.state, learner.checkpoint_state())
    near(model.state["optimizer"]["state"], learner.checkpoint_state()["optimizer"]["state"])
    if learner.sparsifier.moves:
        least = learner.sparsifier.pattern.block / MAX_MOVED  # of fewer active weights none may move at once
        pairs = [p for p in zip(masks, learner.sparsifier.layers, strict=True) if len(p[0]) >= least]
        moved = [len(np.setdiff1d(a, layer.index)) for a, layer in pairs]
        assert moved
        assert all(moved), "the masks did not move: nothing was compared"
    counted = {"executed": ledger.executed, "samples_seen": ledger.samples_seen, **ledger.phases}
    assert counted.pop("other") == 0
    assert model.device["cost"] == {**counted, "samples_removed": ledger.samples_removed}
    assert f"executed {ledger.executed // 2} multiply-adds" in done.stdout


@despite_rounding
def test_python_goes_on_and_the_device_again(program: Path, tmp_path: Path) -> None:
    case = CASES["SparCL and DER++"]
    tasks = list(made.stream())
    wide = Case(case.sparsifier, case.method, "mlp", {"epochs": 3})
    learner = learner_of(wide)
    file = tmp_path / "m.sparcl"
    tasks = [tasks[0], tasks[1], Task(2, tasks[0].classes, tasks[0].train, tasks[0].test, tasks[0].transform)]
    made.export(learner, file, tasks[0])
    for index, task in enumerate(tasks):
        if index == 1:  # in Python, from what the device saved
            again = Learner.load(file, backend="reference")
            again.learn(task)
            made.export(again, file, task)
        else:
            assert made.run(program, "learn", file, packed(task, tmp_path / "s.sparcl")).returncode == 0
        learner.learn(task)
        same(model_file.read(file).state, learner.checkpoint_state())


@pytest.mark.parametrize("name", ["SparCL and DER++", "steps", "momentum", "an average"])
@despite_rounding
def test_the_device_takes_a_task_over_where_python_stands_in_it(program: Path, tmp_path: Path, name: str) -> None:
    first, second, _ = made.stream()
    learner = learner_of(CASES[name])
    learner.learn(first)
    begun, file = learner.steps, tmp_path / "m.sparcl"

    def export_midway(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end" and learner.steps == begun + 17:
            made.export(learner, file, second)

    learner.observers.append(export_midway)
    learner.learn(second)
    assert model_file.read(file).state["learner"]["position"]["done"] == 17
    done = made.run(program, "learn", file, packed(second, tmp_path / "s.sparcl"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "after step 17" in done.stdout
    same(model_file.read(file).state, learner.checkpoint_state())


def test_python_goes_on_inside_a_task_where_the_device_was_stopped(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream(per_class=100)
    case = Case(lambda: SparCL(0.6), lambda: ER(12), options={"steps": 4000})
    learner = learner_of(case, steps=20)
    learner.learn(first)
    learner.budget = learner_of(case).budget
    learner.settings["budget"] = {"steps": 4000}
    file = made.export(learner, tmp_path / "m.sparcl", first)
    samples = packed(second, tmp_path / "s.sparcl")
    made.stopped_inside(program, file, samples, "--threads", 1)
    again = Learner.load(file, backend="reference")
    assert again.position is not None
    assert 0 < again.position.done < 4000
    stopped = again.position.done
    again.position.done = 4000 - 30  # the rest of so long a task would tell no more
    again.learn(second)
    assert (again.learned, again.steps) == (2, 20 + stopped + 30)
    active = sum(len(layer.index) for layer in again.sparsifier.layers)
    assert active == sum(len(layer.index) for layer in learner.sparsifier.layers)


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ({"epochs": 2}, ("--epochs", 100_000)),
        ({"epochs": 2}, ("--steps", 100_000)),
        ({"steps": 20}, ("--epochs", 100_000)),
        ({"seconds": 0.2}, ("--steps", 100_000)),
        ({"seconds": 0.2}, ("--epochs", 100_000)),
    ],
)
def test_a_task_ends_by_the_budget_that_it_was_begun_with(
    program: Path, tmp_path: Path, own: dict[str, Any], asked: tuple[str, int]
) -> None:
    first, second, _ = made.stream()
    learner = learner_of(Case(lambda: SparCL(0.6, samples=0.3), lambda: ER(12), options=own))
    learner.learn(first)
    file, samples = made.export(learner, tmp_path / "m.sparcl", first), packed(second, tmp_path / "s.sparcl")
    made.stopped_inside(program, file, samples, *asked, "--threads", 1)
    before = file.read_bytes()
    for other in (("--steps", 7), ("--epochs", 7), ("--max-seconds", 1)):
        done = made.run(program, "learn", file, samples, *other)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"stands inside a task of {asked[0]} {asked[1]}: give that or no budget" in done.stderr
    made.stopped_inside(program, file, samples)  # by none goes on, too
    assert file.read_bytes() != before
    again = Learner.load(file, backend="reference")
    position = again.position
    assert position is not None
    assert (again.budget.kind, again.budget.amount) == (asked[0][2:], asked[1])
    position.epoch, position.done = (99_999, 500_000) if asked[0] == "--epochs" else (0, 99_990)
    again.learn(second)
    assert again.sparsifier.removed == 0 or (own, asked[0]) != ({"epochs": 2}, "--steps")  # as on the device
    assert {again.budget.kind: again.budget.amount} == own == again.settings["budget"]
    assert (again.learned, len(again.pace)) == (2, 2 if "seconds" in own else 0)
    Learner.load(made.export(again, file, second)).learn(replace(second, index=2))


def test_the_pace_of_steps_that_a_device_was_asked_for_is_a_part_a_step(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream()
    learner = learner_of(Case(lambda: SparCL(0.6), lambda: ER(12), options={"seconds": 0.2}))
    learner.learn(first)
    file, samples = made.export(learner, tmp_path / "m.sparcl", first), packed(second, tmp_path / "s.sparcl")
    done = made.run(program, "learn", file, samples, "--steps", 200)
    assert (done.returncode, done.stderr) == (0, "")
    assert model_file.read(file).state["learner"]["pace"][1] == [*range(1, 201)]


def test_a_file_of_an_earlier_version_does_not_tell_the_budget(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream()
    learner = learner_of(CASES["steps"])
    learner.learn(first)
    file, samples = made.export(learner, tmp_path / "m.sparcl", first), packed(second, tmp_path / "s.sparcl")
    made.stopped_inside(program, file, samples, "--steps", 100_000)
    model = model_file.read(file)
    model.state["learner"]["position"]["budget"] = {"weeks": 3}
    model_file.write(file, model)
    with pytest.raises(CheckpointError, match="the budget in the checkpoint is not one of: epochs, steps, seconds"):
        Learner.load(file)
    assert "budget is not one of: epochs, steps, seconds" in made.run(program, "learn", file, samples).stderr
    del model.state["learner"]["position"]["budget"]
    model_file.write(file, model)
    again = Learner.load(file, backend="reference")
    assert again.position is not None
    assert again.position.budget is None
    done = made.run(program, "learn", file, samples, "--steps", again.position.done + 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert f": {again.position.done + 5} steps" in done.stdout


@despite_rounding
def test_a_head_grows_as_in_python(program: Path, tmp_path: Path) -> None:
    images = made.stream()
    names = [("a", "b"), ("c", "d"), ("a", "e")]
    tasks = [
        make_task(t.train.inputs, [n[i % 2] for i in t.train.labels.tolist()], transform=t.transform)
        for t, n in zip(images, names, strict=True)
    ]
    case = Case(
        lambda: SparCL(0.5),
        lambda: DERpp(12),
        "mlp",
        {"epochs": 2, "classes": (), "optimizer": sgd(momentum=0.9), "average": 0.2},
    )
    learner = learner_of(case)
    learner.learn(tasks[0])
    file = tmp_path / "m.sparcl"
    transform = tasks[0].transform
    export_device(learner, file, transform=transform, input_shape=made.SHAPE, classes=learner.classes.names)
    for task in tasks[1:]:
        pack(task.train, task.names, tmp_path / "s.sparcl")
        assert made.run(program, "learn", file, tmp_path / "s.sparcl").returncode == 0
        learner.learn(task)
        same(model_file.read(file).state, learner.checkpoint_state())
    assert Learner.load(file).classes.names == list("abcde")


def test_a_network_of_one_s_own_comes_back_with_more_classes(program: Path, tmp_path: Path) -> None:
    """Python cannot make it again: whoever loads it hands it over, with as many classes as it has now."""
    first, second, third = made.stream()
    learner = learner_of(Case(lambda: SparCL(0.5), lambda: ER(12), "before", {"epochs": 2}))
    learner.classes.names = list("abcd")
    learner.learn(first)
    file = made.export(learner, tmp_path / "m.sparcl", first)
    pack(second.train, ["cat", 'do"g', "p", "q"], tmp_path / "s.sparcl")
    assert made.run(program, "learn", file, tmp_path / "s.sparcl").returncode == 0
    narrow, wide = made.MODELS["before"](), made.MODELS["before"]()
    wide.classifier = torch.nn.Linear(12, 6)
    with pytest.raises(CheckpointError, match=r"pass Learner\.load"):
        Learner.load(file)
    with pytest.raises(CheckpointError, match=r"classifier.weight in the checkpoint is .* \[6, 12\]"):
        Learner.load(file, narrow)
    again = Learner.load(file, wide, backend="reference")
    assert again.classes.names == ["a", "b", "c", "d", "p", "q"]
    assert again.classes.of_tasks[-1] == (4, 5)
    again.learn(third)
    assert again.learned == 3
    assert again.predict(third.test.inputs).names == ("a", "b", "c", "d", "p", "q")


def test_a_device_answers_by_the_average(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream()
    learner = learner_of(CASES["an average"])
    learner.learn(first)
    learner.learn(second)
    file, samples = made.export(learner, tmp_path / "m.sparcl", second), packed(second, tmp_path / "s.sparcl")
    done = made.run(program, "predict", file, samples, "--logits")
    assert (done.returncode, done.stderr) == (0, "")
    answered = torch.tensor([[float(x) for x in line.split()[1:]] for line in done.stdout.splitlines()])
    inputs = second.transform.test(second.train.inputs)
    with torch.no_grad():
        wanted, trained = (model.eval()(inputs) for model in (learner.dense_model(), learner.model))
    assert torch.allclose(answered, wanted, atol=1e-4)
    assert not torch.allclose(answered, trained, atol=1e-2)
    done = made.run(program, "info", file)
    assert "answers      by an average of the weights over 0.2 of a task's steps" in done.stdout


def test_removal_is_for_budgets_of_epochs(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream()
    learner = learner_of(CASES["SparCL and DER++"])
    learner.learn(first)
    whole = made.export(learner, tmp_path / "m.sparcl", first).read_bytes()
    samples = packed(second, tmp_path / "s.sparcl")
    for budget, removed in ((("--epochs", 10), 14), (("--steps", 40), 0), (("--max-seconds", 0.3), 0)):
        (tmp_path / "m.sparcl").write_bytes(whole)
        done = made.run(program, "learn", tmp_path / "m.sparcl", samples, *budget)
        assert done.returncode == 0
        assert f"{removed} samples were removed" in done.stdout
        assert ("no samples are removed" in done.stdout) == (removed == 0)
        loaded = Learner.load(tmp_path / "m.sparcl")
        assert loaded.sparsifier.removed == removed


@pytest.mark.parametrize(("asked", "removed"), [({}, (0, 14)), ({"samples": 0.3}, (14, 14))])
def test_a_file_made_by_steps_removes_under_steps_what_was_asked_for(
    program: Path, tmp_path: Path, asked: dict[str, Any], removed: tuple[int, int]
) -> None:
    first, second, _ = made.stream()
    learner = learner_of(Case(lambda: SparCL(0.6, **asked), lambda: ER(12), options={"steps": 60}))
    learner.learn(first)
    whole = made.export(learner, tmp_path / "m.sparcl", first).read_bytes()
    samples = packed(second, tmp_path / "s.sparcl")
    for budget, count in zip(((), ("--epochs", 10)), removed, strict=True):
        (tmp_path / "m.sparcl").write_bytes(whole)
        done = made.run(program, "learn", tmp_path / "m.sparcl", samples, *budget)
        assert f"{count} samples were removed" in done.stdout


def test_what_does_not_run_on_a_device_is_refused_in_one_line(program: Path, tmp_path: Path) -> None:
    first, second, _ = made.stream()
    samples = packed(second, tmp_path / "s.sparcl")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sparsifier": made.RIVALS["set"]()}, "sparsifier set is not in this program; allowed: dense, static, tdm"),
        ({"sparsifier": SparCL(0.6, ranking="fresh")}, "make it with ranking='step'"),
    ]
    for parts, said in cases:
        learner = made.learner(**parts)
        learner.learn(first)
        file = made.export(learner, tmp_path / "m.sparcl", first)
        done = made.run(program, "learn", file, samples)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert made.run(program, "evaluate", file, samples).returncode == 0  # what needs no sparsifier goes on
    for optimizer, said in [
        (lambda ps: torch.optim.RMSprop(ps), "optimizer RMSprop is not in this program; allowed: SGD, Adam, AdamW"),
        (lambda ps: torch.optim.Adam(ps, amsgrad=True), "the file's optimizer has amsgrad"),
        (lambda ps: torch.optim.SGD(ps, lr=0.1, maximize=True), "the file's optimizer has maximize"),
    ]:
        learner = learner_of(Case(lambda: Static(0.6), lambda: ER(12), "mlp", {"optimizer": optimizer}))
        file = made.export(learner, tmp_path / "m.sparcl", first)
        done = made.run(program, "learn", file, samples)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
