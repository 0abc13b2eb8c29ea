"""An average of the weights that answers: its formula, masks that move, heads that grow, checkpoints and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import Net, adam, blobs, make_learner

from sparcl import Learner, kernels, streams
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner import making
from sparcl.main import _main
from sparcl.methods import ER, DERpp, PackNet
from sparcl.nn import ConvNet
from sparcl.nn.dense import dense_model
from sparcl.nn.layers import AVERAGE
from sparcl.run.measured import model_sha256
from sparcl.sparsity import SET, RigL, SparCL, Sparsifier

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]
SHARE = 0.2


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and running statistics by their dense names, copied."""
    return {k: v.clone() for k, v in dense_model(model).state_dict().items() if v.is_floating_point()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def after_each_step(learner: Learner, look: Callable[[], None]) -> None:
    learner.observers.append(lambda event, _: look() if event == "step.end" else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_polynomial_decay_averaging_and_begins_anew_with_each_task(backend: str) -> None:
    learner = make_learner(model=Net(), sparsifier=Sparsifier(), average=SHARE, backend=backend)
    by_hand: dict[str, Tensor] = {}
    eta = 1 / SHARE - 1
    step = [0]

    def take_in() -> None:
        step[0] += 1
        for name, now in state_of(learner.model).items():
            weight = (eta + 1) / (step[0] + eta)
            before = by_hand.get(name, now)
            by_hand[name] = (1 - weight) * before + weight * now

    after_each_step(learner, take_in)
    for task in blobs():
        step[0] = 0
        learner.learn(task)
        answers = {k: v for k, v in learner.dense_model().state_dict().items() if v.is_floating_point()}
        assert answers.keys() == by_hand.keys()
        for name, value in answers.items():
            torch.testing.assert_close(value, by_hand[name], msg=lambda m, name=name: f"{name}: {m}")
        assert not torch.allclose(answers["conv.weight"], state_of(learner.model)["conv.weight"], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [SparCL, SET, RigL], ids=["sparcl", "set", "rigl"])
def test_training_is_what_it_is_without_and_the_average_keeps_to_the_mask(make: type[Any], backend: str) -> None:
    plain, averaged = (
        make_learner(model=Net(), sparsifier=make(0.6), average=share, backend=backend) for share in (None, SHARE)
    )
    for task in blobs():
        plain.learn(task)
        averaged.learn(task)
        averaged.evaluate()
    trained = state_of(plain.model)
    assert same(trained, state_of(averaged.model))
    answers = averaged.dense_model().state_dict()
    for layer in averaged.sparsifier.layers:
        weight = answers[f"{layer.name}.weight"]
        outside = torch.ones(weight.numel(), dtype=torch.bool)
        outside[layer.index] = False
        assert not weight.flatten()[outside].any(), "a weight outside the mask answers"
        assert not torch.equal(weight, trained[f"{layer.name}.weight"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_new_on_a_mask_begins_at_zero(backend: str) -> None:
    learner = make_learner(model=Net(), sparsifier=SET(0.6), average=SHARE, backend=backend)
    learner.learn(blobs()[0])
    layer = learner.sparsifier.layers[0]
    before = learner.optimizer.state[layer.parameter][AVERAGE].clone()
    old = layer.index.clone()
    free = torch.ones(layer.parameter.numel() if backend == "reference" else 8 * 4 * 9, dtype=torch.bool)
    free[old] = False
    moved = torch.cat([old[1:], free.nonzero()[:1, 0]]).sort().values
    layer.set_index(moved, learner.optimizer)
    now = layer.gather(learner.optimizer.state[layer.parameter][AVERAGE])
    stayed = torch.isin(moved, old)
    assert not now[~stayed].any()
    kept = before if backend == "native" else before.flatten()[old]
    assert torch.equal(now[stayed], kept[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_that_answers_is_the_average_and_the_weights_are_left_as_they_were(backend: str) -> None:
    learner = make_learner(model=Net(), sparsifier=SparCL(0.6), average=SHARE, backend=backend)
    seen: list[dict[str, Tensor]] = []
    learner.observers.append(lambda event, _: seen.append(state_of(learner.model)) if "evaluate.b" in event else None)
    stream = blobs()
    learner.learn(stream[0])
    trained = state_of(learner.model)
    average = learner.dense_model()
    learner.evaluate()
    assert same(seen[0], trained), "evaluate.begin is before"
    assert same(seen[1], state_of(average))
    assert same(state_of(learner.model), trained)
    test = stream[0].test
    assert test is not None
    found = learner.predict(test.inputs)
    with torch.no_grad():
        logits = average(stream[0].transform.test(test.inputs))
    assert [str(k) for k in found.labels] == [str(k) for k in logits.argmax(1).tolist()]
    with learner.averaged(), learner.averaged():
        assert same(state_of(learner.model), state_of(average))
    assert same(state_of(learner.model), trained)
    with pytest.raises(ZeroDivisionError), learner.averaged():
        raise ZeroDivisionError
    assert same(state_of(learner.model), trained)


def test_nothing_learns_and_nothing_is_saved_while_the_average_answers(tmp_path: Path) -> None:
    learner = make_learner(model=Net(), average=SHARE)
    stream = blobs()
    learner.learn(stream[0])
    with learner.averaged():
        with pytest.raises(ConfigError, match="the model's weights are their average at present: leave `averaged`"):
            learner.learn(stream[1])
        with pytest.raises(CheckpointError, match="the model's weights are their average"):
            learner.save(tmp_path)
        with pytest.raises(ConfigError, match="the model's weights are their average"):
            learner.observe(stream[1].train.inputs[:4], stream[1].train.labels[:4])
    learner.learn(stream[1])
    learner.save(tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", [None, adam], ids=["sgd", "adam"])
def test_a_state_inside_a_task_goes_on_to_the_same_bits_on_either_backend(
    tmp_path: Path, backend: str, optimizer: Any
) -> None:
    stream = blobs()

    def make() -> Learner:
        return make_learner(model=Net(), sparsifier=SparCL(0.6), average=SHARE, backend=backend, optimizer=optimizer)

    whole = make()
    for task in stream:
        whole.learn(task)
    killed = make()
    after_each_step(killed, lambda: killed.steps == 13 and killed.save(tmp_path) and None)
    for task in stream:
        killed.learn(task)
    again = Learner.load(tmp_path, Net(), backend=backend, optimizer=optimizer)
    assert (again.steps, again.settings["average"]) == (13, SHARE)
    for task in stream[again.learned :]:
        again.learn(task)
    assert same(state_of(whole.model), state_of(again.model))
    assert same(state_of(whole.dense_model()), state_of(again.dense_model()))
    one, *others = (Learner.load(tmp_path, Net(), backend=b, optimizer=optimizer).dense_model() for b in BACKENDS)
    assert all(same(state_of(one), state_of(other)) for other in others)


def test_a_head_that_grows_and_a_stream_without_borders(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def small() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))

    learner = Learner(small(), ER(20), classes=("a",), average=SHARE)
    x = torch.randn(8, 8)
    head = list(learner.model.children())[-1]
    for names in (["a", "b"], ["c", "a"]):
        for _ in range(3):
            learner.observe(x, names * 4)
    assert learner.stream is not None
    assert learner.stream.done == 6
    assert learner.optimizer.state[head.weight][AVERAGE].shape == head.weight.shape == (3, 6)
    learner.observe(x[0], "d")
    with learner.averaged(), pytest.raises(ConfigError, match="the model's weights are their average"):
        learner.observe(x[0], "d")
    average, weight = learner.optimizer.state[head.weight][AVERAGE][3], head.weight.detach()[3]
    drift = (average - weight).abs().max()
    assert drift < 0.1 * weight.abs().max(), "a new row begins at what was drawn, not at zero"
    learner.save(tmp_path)
    again = Learner.load(tmp_path, small())
    assert torch.equal(again.predict(x).probabilities, learner.predict(x).probabilities)


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0, -0.1, float("nan"), float("inf"), True, "0.1"])
def test_what_is_no_share_is_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match=r"average .* is not allowed; use a share of a task's steps above 0"):
        Learner(Net(), DERpp(20), average=share)


def test_a_method_that_keeps_weights_apart_refuses_it() -> None:
    with pytest.raises(ConfigError, match="method packnet keeps each task's weights as they are: leave average out"):
        Learner(Net(), PackNet(), average=SHARE)


def test_a_checkpoint_of_it_is_checked(tmp_path: Path) -> None:
    learner = make_learner(model=Net(), average=SHARE)
    learner.learn(blobs()[0])
    learner.save(tmp_path)

    def state() -> dict[str, Any]:
        return open_folder(tmp_path)

    with pytest.raises(CheckpointError, match=r"average is None here, but 0.2 in the checkpoint"):
        make_learner(model=Net()).restore(state())
    for share in (2.0, "x", float("nan")):
        damaged = state()
        damaged["settings"]["average"] = share
        with pytest.raises(CheckpointError, match="the settings in the checkpoint are not allowed: average"):
            making.make(damaged, Net(), None, None)
    for change in (
        lambda s: s["learner"].pop("average"),
        lambda s: s["learner"]["average"].update(other=torch.zeros(8)),
        lambda s: s["learner"]["average"].update({"norm1.running_mean": torch.zeros(3)}),
        lambda s: s["learner"].update(average=3),
        lambda s: s["optimizer"]["state"]["conv.weight"].update(average=torch.zeros(3)),
        lambda s: s["optimizer"]["state"]["conv.weight"].update(average="x"),
        lambda s: s["optimizer"]["state"]["conv.weight"].update(averages=torch.zeros(3)),
    ):
        damaged = state()
        change(damaged)
        with pytest.raises(CheckpointError):
            make_learner(model=Net(), average=SHARE).restore(damaged)


def test_a_run_answers_with_it(tmp_path: Path) -> None:
    small = ("--epochs", "2", "--limit-per-class", "40", "--width", "8", "--threads", "1", "--average", "0.2")
    assert _main(["run", "seq-digits", "--out", str(tmp_path / "run"), *small]) == 0
    learner = Learner.load(tmp_path / "run" / "checkpoint")
    model = ConvNet(10, 1, 8)
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    assert same(state_of(model), state_of(learner.dense_model()))
    assert not same(state_of(model), state_of(learner.model))
    for command in (["--format", "device", "--out", "m.sparcl"], ["--out", "m.safetensors"]):  # the first's own file
        came_from = tmp_path / ("run" if "device" in command else "m.sparcl")
        assert _main(["export", str(came_from), *command[:-1], str(tmp_path / command[-1])]) == 0
    assert same(load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "run" / "model.safetensors"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found = learner.evaluate(list(streams.seq_digits())).class_il
    assert found is not None
    assert result["class_il"] == pytest.approx(sum(found) / len(found), abs=1e-3)
    assert result["model_sha256"] == model_sha256(learner.dense_model())
    assert "average = 0.2" in (tmp_path / "run" / "config.toml").read_text()
