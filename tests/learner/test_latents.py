"""Training behind a frozen front: the same as through it, from latents that are computed once and kept in few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Net, blobs, make_learner

import sparcl
from sparcl import kernels
from sparcl.checkpoint import tree
from sparcl.cost.flops import Ledger
from sparcl.errors import CheckpointError, ConfigError, DataError, DataWarning
from sparcl.learner.latents import OfLatents
from sparcl.methods import METHODS, DERpp
from sparcl.nn import ConvNet, resnet18
from sparcl.sparsity import SNIP, RigL, SparCL

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]
FRONT = "stem,norm1,grouped,norm2"


def learned(backend: str = "reference", **options: Any) -> sparcl.Learner:
    learner = make_learner(model=Net(), freeze=FRONT, backend=backend, **options)
    for task in blobs():
        learner.learn(task)
    return learner


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sparsifier", [lambda: SparCL(0.7), lambda: RigL(0.7, every=2), lambda: SNIP(0.7), lambda: None]
)
def test_float32_latents_train_as_the_frozen_model_does(backend: str, sparsifier: Any) -> None:
    through, behind = (learned(backend, sparsifier=sparsifier(), latents=kind) for kind in (None, "float32"))
    for (name, one), other in zip(
        through.dense_model().state_dict().items(), behind.dense_model().state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    assert behind.evaluate().class_il == through.evaluate().class_il
    x = blobs()[0].test.inputs
    torch.testing.assert_close(behind.predict(x).probabilities, through.predict(x).probabilities, rtol=1e-3, atol=1e-4)


def test_int8_latents_are_close_and_take_a_quarter_of_the_bytes() -> None:
    exact, near = (learned(sparsifier=None, method=DERpp(12), latents=kind) for kind in ("float32", "int8"))
    accuracy = [sum(one.evaluate().class_il) / 2 for one in (exact, near)]
    assert abs(accuracy[0] - accuracy[1]) < 10.0
    rows = [one.method.buffer.inputs for one in (exact, near)]
    assert [row.dtype for row in rows] == [torch.float32, torch.int8]
    assert rows[0].shape[1:] == (8, 6, 6)
    assert rows[1].shape[1:] == (8 * 6 * 6 + 8 * 4,)
    assert near.method.buffer.nbytes() == 12 * (8 * 36 + 32 + 8 + 16)
    assert "latents int8)" in repr(near)


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (2, 6), (2, 16)])
def test_latents_come_back_as_they_were_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(9, *shape) * torch.logspace(-6, 6, 9).view(-1, *[1] * len(shape))
    x[3] = 0
    for kind, error in (("float32", 0.0), ("float16", 2**-11), ("int8", 0.5 / 127 + 1e-6)):
        form = OfLatents(kind=kind, shape=shape)
        if kind == "float16":
            x = x.clamp(-60000, 60000)
        again = form.test(form.kept(x))
        largest = x.abs().flatten(1).amax(1).view(-1, *[1] * len(shape))
        assert again.shape == x.shape
        assert bool(((again - x).abs() <= error * largest + 6e-8).all()), kind
    form = OfLatents(kind="int8", shape=shape)
    assert torch.equal(form.test(form.kept(form.test(form.kept(x)))), form.test(form.kept(x)))
    with pytest.raises(DataError, match=r"hold 65504 at most.*float32 or int8"):
        OfLatents(kind="float16", shape=shape).kept(x * 1e9)
    with pytest.raises(DataError, match="answers with numbers up to nan"):
        OfLatents(kind="float32", shape=shape).kept(x * float("nan"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_latents_and_goes_on_to_the_same_bits(
    tmp_path: Path, method: str, backend: str
) -> None:
    kind = METHODS[method]
    fixed = kind.masks != "moving"

    def made(**more: Any) -> sparcl.Learner:
        torch.manual_seed(0)
        return sparcl.Learner(
            ConvNet(4, 2, 8),
            kind(),
            None if fixed else SparCL(0.7),
            epochs=2,
            batch_size=8,
            freeze="0,1,3,4",
            latents="int8",
            backend="reference" if fixed else backend,
            **more,
        )

    stream, whole = blobs(2), made(checkpoint_dir=tmp_path, checkpoint_every=7)
    frozen = whole.model[1].running_mean.clone()
    tasks = list(stream.merged() if kind.learns_all_at_once else stream)
    for task in tasks:
        whole.learn(task)
    end, accuracy = whole.checkpoint_state(), whole.evaluate(list(stream))
    assert torch.equal(whole.model[1].running_mean, frozen)
    for folder in sorted(tmp_path.glob("step-*")):
        again = sparcl.Learner.load(folder, backend=whole.backend)
        for task in tasks[again.learned :]:
            again.learn(task)
        assert tree.difference(again.checkpoint_state(), end) is None
        assert again.evaluate(list(stream)) == accuracy
    state = whole.answer_state(tasks[0])
    plain = whole.dense_model()
    task = tasks[0]
    with torch.no_grad():
        told = type(whole.method).answer(plain, task.transform.test(task.test.inputs), state, 0)
        mine = whole.answering.predict(task.transform.test(task.test.inputs), task)
    own = list(task.classes)
    torch.testing.assert_close(told[:, own], mine[:, own], rtol=1e-3, atol=1e-4)


def test_a_growing_head_and_an_evaluating_observer_on_latents() -> None:
    learner = sparcl.Learner(
        ConvNet(1, 2, 8), DERpp(12), SparCL(0.7), classes=(), epochs=2, batch_size=8, freeze="0,1", latents="float16"
    )
    learner.observers.append(lambda event, _: event == "epoch.begin" and learner.evaluate(evaluated))
    evaluated: list[Any] = []
    for names in (["a", "b"], ["c", "a"]):
        x = torch.randn(16, 2, 6, 6)
        task = sparcl.streams.make_task(x, names * 8, test=(x, names * 8))
        evaluated = [sparcl.streams.Task(0, (0, 1), blobs()[0].train, blobs()[0].test)] if learner.learned else []
        if not evaluated:
            learner.observers.clear()
        learner.learn(task)
    assert learner.classes.names == ["a", "b", "c"]
    assert set(learner.predict(x).labels) <= {"a", "b", "c"}


def test_augmentation_is_left_out_and_said_once() -> None:
    learner = make_learner(model=Net(), freeze=FRONT, latents="float32", sparsifier=None)
    first, second = blobs(flip=True)
    with pytest.warns(DataWarning, match="not cropped or flipped"):
        learner.learn(first)
    learner.learn(second)  # a second warning would be an error


def test_the_ledger_counts_the_front_once_for_each_sample_and_steps_behind_it() -> None:
    counted = {}
    for kind in (None, "float32"):
        learner = make_learner(model=Net(), freeze=FRONT, latents=kind, sparsifier=None)
        front = None if learner.latents is None else learner.latents.front
        ledger = Ledger(learner.rest, learner.sparsifier.layers, (2, 6, 6), front)
        learner.observers.append(ledger)
        learner.learn(blobs()[0])
        counted[kind] = ledger
    costs = counted["float32"].front.costs
    through, behind = counted[None].phases, counted["float32"].phases
    assert behind["backward"] == through["backward"]
    assert behind["other"] - through["other"] == 40 * costs.forward
    passes = through["forward"] // counted[None].main.costs.forward
    assert through["forward"] - behind["forward"] == passes * costs.forward
    assert counted["float32"].dense == counted["float32"].executed


@pytest.mark.parametrize("sparsifier", [lambda: RigL(0.7, every=2), lambda: SNIP(0.7)])
def test_passes_that_rank_all_positions_are_counted_behind_the_front_too(sparsifier: Any) -> None:
    seen = []
    for kind in (None, "float32"):
        learner = make_learner(model=Net(), freeze=FRONT, latents=kind, sparsifier=sparsifier())
        learner.observers.append(
            lambda _, figures: (
                seen.append(figures["dense_gradient_samples"]) if "dense_gradient_samples" in figures else None
            )
        )
        learner.learn(blobs()[0])
    assert len(seen) % 2 == 0
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert min(seen) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latents": "int8"}, "nothing is frozen"),
        ({"latents": "int4", "freeze": FRONT}, "unknown latents 'int4'; allowed: float32, float16, int8"),
        ({"latents": "int8", "freeze": "conv"}, "nothing that is frozen stands at the front"),
        (
            {"latents": "int8", "freeze": FRONT, "method": DERpp(12, buffer_storage="float16")},
            "leave buffer storage float16 out",
        ),
    ],
)
def test_what_gives_no_latents_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_learner(model=Net(), sparsifier=None, **options)


def test_a_front_that_was_unfrozen_is_refused() -> None:
    model = Net()
    for part in FRONT.split(","):
        model.get_submodule(part).requires_grad_(False)
    learner = make_learner(model=model, latents="float32", sparsifier=None)
    first, second = blobs()
    learner.learn(first)
    model.stem.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"stem\.weight was unfrozen"):
        learner.learn(second)


def test_a_checkpoint_of_other_latents_is_refused() -> None:
    state = learned(sparsifier=None, latents="int8").checkpoint_state()
    other = make_learner(model=Net(), freeze=FRONT, sparsifier=None, latents="float16")
    with pytest.raises(CheckpointError, match="latents is float16 here, but 'int8' in the checkpoint"):
        other.restore(state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_so_many_bytes_of_latents(backend: str) -> None:
    learner = sparcl.Learner(
        resnet18(4, width=4, channels=2),
        DERpp(buffer_bytes="6kB", buffer_policy="balanced"),
        SparCL(0.7),
        epochs=1,
        batch_size=8,
        freeze="stem,layer1,layer2,layer3",
        latents="int8",
        backend=backend,
    )
    for task in blobs():
        learner.learn(task)
    buffer = learner.method.buffer
    one = 32 * 2 * 2 // 2 + 4 + 8 + 4 * 4  # layer3 has 16 channels of 2×2 here: one scale for all of them
    assert buffer.capacity == 6000 // one
    assert buffer.nbytes() <= 6000


def test_on_digits_float32_latents_end_at_the_same_accuracy_and_int8_near_it() -> None:
    """Trained long enough that seeds end within a few percent: after 3 epochs they are 40 apart, frozen or not."""
    tasks, ends = sparcl.streams.seq_digits(limit_per_class=100)[:2], []
    for kind in (None, "float32", "int8"):
        torch.manual_seed(0)
        learner = sparcl.Learner(
            ConvNet(10, width=8), DERpp(200), lr=0.03, epochs=12, freeze="0,1", latents=kind, backend="reference"
        )
        for task in tasks:
            learner.learn(task)
        ends.append(sum(learner.evaluate().class_il) / 2)
    assert ends[0] > 75.0
    assert ends[1] == pytest.approx(ends[0], abs=1.0)
    assert ends[2] == pytest.approx(ends[0], abs=3.0)


class Unused(Net):
    """A layer that `forward` never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 4)


@pytest.mark.parametrize("make", [RigL, SNIP])
def test_a_prunable_layer_that_is_never_called_is_ranked_by_nothing(make: Any) -> None:
    sparsifier = make(0.5, prunable=["conv", "hidden", "unused"])
    learner = make_learner(model=Unused(), sparsifier=sparsifier, freeze=FRONT, latents="float32")
    for task in blobs():
        learner.learn(task)
    assert learner.learned == 2


class Normed(Net):
    """Normalises by its batch before the front."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean()) / x.std())


def test_a_front_that_looks_at_its_batch_is_refused() -> None:
    learner = make_learner(model=Normed(), freeze=FRONT, latents="float32")
    with pytest.raises(ConfigError, match="depends on its batch"):
        learner.learn(blobs()[0])
