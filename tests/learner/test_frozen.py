"""A frozen part stays to the bit, evaluates while the rest trains, is never pruned, and is so again when loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Net, blobs, make_learner

import sparcl
from sparcl import kernels
from sparcl.cost.flops import Ledger
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner.frozen import named
from sparcl.methods import METHODS, DERpp
from sparcl.nn import ConvNet, resnet18
from sparcl.run.export_device import export_device
from sparcl.run.measured import sparsity
from sparcl.sparsity import RigL, SparCL

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]
FRONT = "stem,norm1,grouped,norm2"


def snapshot(model: nn.Module, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights and running statistics of parts of a model."""
    state = model.state_dict()
    return {k: v.clone() for k, v in state.items() if k.split(".")[0] in parts}


def decaying(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_named_part_and_its_statistics_stay_to_the_bit_under_every_method(method: str, backend: str) -> None:
    stream, model = blobs(2), Net(dropout=0.2)
    kept = snapshot(model, ("stem", "norm1", "grouped", "norm2"))
    whole = METHODS[method].masks == "none" or METHODS[method].masks == "fixed" or backend == "reference"
    learner = make_learner(
        model=model,
        method=METHODS[method](),
        sparsifier=None if whole else SparCL(0.7),
        backend="reference" if whole else backend,
        optimizer=decaying,
        freeze=FRONT,
        epochs=2,
    )
    held = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in held for p in model.norm1.parameters())
    before = learner.model.conv.bias.detach().clone()
    for task in stream.merged() if METHODS[method].learns_all_at_once else stream:
        learner.learn(task)
    assert not torch.equal(learner.model.conv.bias, before)
    assert {k: v.tolist() for k, v in snapshot(learner.model, ("stem", "norm1", "grouped", "norm2")).items()} == {
        k: v.tolist() for k, v in kept.items()
    }


def test_what_came_with_requires_grad_false_evaluates_as_well() -> None:
    model = Net()
    model.norm1.requires_grad_(False)
    learner, modes = make_learner(model=model, sparsifier=None), set()
    learner.observers.append(
        lambda event, _: event == "step.begin" and modes.add((model.norm1.training, model.norm2.training))
    )
    statistics = model.norm1.running_mean.clone()
    learner.learn(blobs()[0])
    learner.observers.append(lambda event, _: event == "epoch.begin" and learner.evaluate())  # gives the modes back
    learner.learn(blobs()[1])
    assert modes == {(False, True)}
    assert torch.equal(model.norm1.running_mean, statistics)


def test_dropout_in_a_frozen_part_drops_nothing() -> None:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(72, 8), nn.Dropout(0.9)),
        nn.Linear(8, 8),
        nn.Dropout(0.5),
        nn.Linear(8, 4),
    )
    learner, modes = make_learner(model=model, sparsifier=None, freeze="1"), set()
    learner.observers.append(
        lambda event, _: event == "step.begin" and modes.add((model[1][1].training, model[3].training))
    )
    learner.learn(blobs()[0])
    assert modes == {(False, True)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_layers_are_not_pruned_nor_asked_of_prunable_nor_passed_back_through(backend: str) -> None:
    asked: list[str] = []

    def prunable(name: str, module: nn.Module) -> bool:
        del module
        asked.append(name)
        return name in ("grouped", "conv", "hidden")

    learner = make_learner(sparsifier=SparCL(0.7, prunable=prunable), backend=backend, freeze=FRONT)
    assert set(asked) == {"conv", "hidden", "classifier"}
    assert [layer.name for layer in learner.sparsifier.layers] == ["conv", "hidden"]
    learner.learn(blobs()[0])
    dense = 8 * 8 * 9 + 12 * 8
    assert sparsity(learner)["prunable"] == dense
    assert sparsity(learner)["weights"] == pytest.approx(0.7, abs=0.01)
    assert sparsity(learner)["gradients"] > 0.7
    assert all(p.grad is None for name in FRONT.split(",") for p in learner.model.get_submodule(name).parameters())
    x = torch.zeros(2, 2, 6, 6)
    assert not learner.model.norm2(learner.model.grouped(x.expand(2, 2, 6, 6).repeat(1, 4, 1, 1))).requires_grad


def test_the_published_choice_leaves_out_what_is_frozen_and_nothing_more() -> None:
    model = resnet18(10, width=4)
    learner = sparcl.Learner(model, sparsifier=SparCL(0.7), freeze="stem,layer1", backend="reference")
    assert learner.frozen.names == ("conv1", "bn1", "layer1")
    names = [layer.name for layer in learner.sparsifier.layers]
    assert len(names) == 12
    assert names[0] == "layer2.0.conv1"


def test_the_ledger_counts_a_frozen_front_forward_and_never_back() -> None:
    def per_sample(freeze: str | None) -> tuple[Any, Any]:
        learner = make_learner(sparsifier=None, freeze=freeze)
        ledger = Ledger(learner.model, learner.sparsifier.layers, (2, 6, 6))
        return ledger.main.costs, {call.name: call for call in ledger.main.calls}

    (frozen, calls), (trained, _) = per_sample(FRONT), per_sample(None)
    front = sum(2 * calls[name].positions * calls[name].weights for name in ("stem", "grouped"))
    stem, conv = (2 * calls[name].positions * calls[name].weights for name in ("stem", "conv"))
    assert frozen.forward == trained.forward
    assert (
        trained.backward - frozen.backward == 2 * front - stem + conv
    )  # conv's input gradient is not asked for either
    assert trained.paper_backward - frozen.paper_backward == 2 * front


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", [lambda: SparCL(0.7), lambda: RigL(0.7, every=2)])
def test_a_frozen_learner_goes_on_to_the_same_bits(tmp_path: Path, backend: str, sparsifier: Callable[[], Any]) -> None:
    def made(**more: Any) -> sparcl.Learner:
        torch.manual_seed(0)
        return sparcl.Learner(
            ConvNet(4, 2, 8), DERpp(12), sparsifier(), optimizer=decaying, epochs=2, batch_size=8, backend=backend,
            freeze="0,1", **more,
        )  # fmt: skip

    stream, whole = blobs(2, flip=True), made(checkpoint_dir=tmp_path / "all", checkpoint_every=7)
    for task in stream:
        whole.learn(task)
    end = whole.checkpoint_state()
    for folder in sorted((tmp_path / "all").glob("step-*")):
        again = sparcl.Learner.load(folder, optimizer=decaying, backend=backend)
        assert again.frozen.names == ("0", "1")
        assert " frozen)" in repr(again)
        for task in stream[again.learned :]:
            again.learn(task)
        assert sparcl.checkpoint.tree.difference(again.checkpoint_state(), end) is None
    plain = sparcl.Learner(ConvNet(4, 2, 8), DERpp(12), sparsifier(), epochs=2, batch_size=8, backend=backend)
    with pytest.raises(CheckpointError, match=r"freeze is None here, but \['0', '1'\] in the checkpoint"):
        plain.restore(end)


def test_a_prunable_layer_that_came_frozen_is_so_again_and_one_unfrozen_since_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ConvNet(4, 2, 8)
    model[3].requires_grad_(False)
    learner = sparcl.Learner(model, DERpp(12), SparCL(0.7), epochs=2, batch_size=8, backend="reference")
    assert "3" not in [layer.name for layer in learner.sparsifier.layers]
    first, second = blobs(2)
    learner.learn(first)
    learner.save(tmp_path / "first")
    assert not sparcl.Learner.load(tmp_path / "first").model[3].weight.requires_grad
    model[3].requires_grad_(True)
    before = model[3].weight.detach().clone()
    learner.learn(second)
    assert not torch.equal(model[3].weight, before)
    learner.save(tmp_path / "second")
    again = sparcl.Learner.load(tmp_path / "second", backend="reference")
    assert again.model[3].weight.requires_grad
    assert sparcl.checkpoint.tree.difference(again.checkpoint_state(), learner.checkpoint_state()) is None


@pytest.mark.parametrize(
    ("freeze", "said"),
    [
        (
            "body",
            "freeze names 'body', which the model has not; allowed are names or shell patterns of modules: stem, ",
        ),
        ("stem,", "freeze names ''; allowed"),
        ([], "freeze names nothing"),
        ([3], "freeze names 3"),
        ("dropout", "hold no weights"),
        ("*", "nothing of the model would learn"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_one_line(freeze: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as caught:
        make_learner(freeze=freeze)
    assert "\n" not in str(caught.value)


def test_names_patterns_and_what_is_inside() -> None:
    model = resnet18(10, width=4)
    assert named(model, "layer?.0") == tuple(f"layer{k}.0" for k in range(1, 5))
    assert named(model, ["layer1.*", "layer1"]) == ("layer1",)
    assert named(model, "layer2.1.bn1, conv1") == ("conv1", "layer2.1.bn1")


def test_a_frozen_classifier_that_should_grow_is_refused() -> None:
    with pytest.raises(ConfigError, match="classifier is frozen"):
        make_learner(classes=(), freeze="classifier")
    learner = make_learner(classes=(), sparsifier=None)
    learner.learn(sparcl.streams.make_task(torch.randn(8, 2, 6, 6), ["a", "b"] * 4))
    learner.model.classifier.requires_grad_(False)
    with pytest.raises(ConfigError, match="classifier is frozen"):
        learner.learn(sparcl.streams.make_task(torch.randn(8, 2, 6, 6), ["c", "d"] * 4))


def test_no_device_is_given_what_it_would_train(tmp_path: Path) -> None:
    learner = sparcl.Learner(ConvNet(4, 2, 8), DERpp(12), freeze="0", backend="reference")
    task = blobs()[0]
    with pytest.raises(ConfigError, match=r"0\.weight is frozen"):
        export_device(
            learner, tmp_path / "m", transform=task.transform, input_shape=(2, 6, 6), classes=["a", "b", "c", "d"]
        )


class Weightless(nn.Module):
    """A norm and a Dropout that have nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(72, 16), nn.BatchNorm1d(16, affine=False)
        self.drop, self.b, self.c = nn.Dropout(0.5), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.c(self.b(self.drop(self.norm(self.stem(x.flatten(1))))).relu())
        return logits


def test_a_copy_keeps_frozen_what_has_no_weights() -> None:
    learner = sparcl.Learner(Weightless(), METHODS["er"](20), freeze="stem,norm,drop", batch_size=8)
    learner.learn(blobs()[0])
    copied = copy.deepcopy(learner)
    for one in (learner, copied):
        one.learn(blobs()[1])
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, copied.model.state_dict()[name]), name


def test_a_frozen_norm_without_weights_takes_no_statistics_of_a_batch() -> None:
    learner = sparcl.Learner(Weightless(), METHODS["er"](20), freeze="stem,norm", batch_size=1, replay_batch_size=1)
    learner.learn(blobs(per_class=3)[0])
    learner.observe(torch.zeros(2, 6, 6)[None], [0])
    with pytest.raises(ConfigError, match="layer norm"):
        sparcl.Learner(Weightless(), METHODS["er"](20), freeze="stem", batch_size=1)
