"""What is refused leaves the model, the Learner and its head as they were, and a second try works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Net, blobs

from sparcl import Learner, SparCL, kernels, methods, nn, streams
from sparcl.errors import ConfigError, SparclError
from sparcl.sparsity import SET, Static

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]
DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.ConvNet(4, channels=3, width=8)


def shape_of(model: torch.nn.Module) -> list[Any]:
    modules = [(name, type(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for name, m in model.named_modules()]
    return [*modules, *((n, id(p), p.requires_grad) for n, p in model.named_parameters())]


NO_OPTIMIZER: Callable[[Any], Any] = lambda _: None  # noqa: E731
REFUSED: dict[str, dict[str, Any]] = {
    "checkpoint interval": {"checkpoint_every": "5m"},
    "latents": {"freeze": "0", "latents": "int16"},
    "latents beside a packed buffer": {
        "freeze": "0",
        "latents": "int8",
        "method": methods.ER(4, buffer_storage="jpeg"),
    },
    "optimizer with a closure": {"optimizer": torch.optim.LBFGS},
    "no optimizer": {"optimizer": NO_OPTIMIZER},
    "not elementwise": {"optimizer": lambda p: torch.optim.Adafactor(p)},
    "optimizer's own refusal": {"optimizer": lambda p: torch.optim.SGD(p, lr=-1.0)},
    "shape": {"input_shape": (1, 8, 8), "backend": "auto"},
    "blocks": {"sparsifier": SparCL(0.5, pattern="block", block_size=3)},
    "head": {"classes": (), "sparsifier": Static(0.5, prunable=["*"])},
    "head and frozen": {"classes": (), "freeze": "*"},
    "last batch": {"drop_last": "no"},
    "seed": {"seed": -3},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(REFUSED))
def test_a_refused_learner_leaves_the_model_as_it_was(name: str, backend: str, tmp_path: Path) -> None:
    options = {
        "checkpoint_dir": tmp_path,
        "sparsifier": Static(0.5),
        "backend": backend,
        **copy.deepcopy(REFUSED[name]),
    }
    model = network()
    before, weights = shape_of(model), copy.deepcopy(model.state_dict())
    if name == "shape" and backend == "reference":
        options |= {"input_shape": "3x8"}
    with pytest.raises((ConfigError, ValueError)):
        Learner(model, **options)
    assert shape_of(model) == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    again = {key: options[key] for key in ("sparsifier", "method") if key in options and name not in ("blocks", "head")}
    learner = Learner(model, **{"sparsifier": Static(0.5), **again}, backend=backend, checkpoint_dir=tmp_path)
    learner.learn(streams.from_arrays(X, np.arange(24) % 4)[0])
    Learner.load(learner.save(tmp_path).parent)  # the model is still known as one of ours


def test_a_method_or_sparsifier_of_another_learner_is_refused_before_the_model_is_pruned() -> None:
    method, sparsifier = methods.ER(4), Static(0.5)
    Learner(network(), method, sparsifier)
    for again in ({"method": method, "sparsifier": Static(0.5)}, {"sparsifier": sparsifier}):
        model = network()
        with pytest.raises(ConfigError, match="belongs to another Learner"):
            Learner(model, backend="reference", **again)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


class Own(torch.nn.Module):
    """A network that no checkpoint can make."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.ConvNet(4, channels=3, width=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refused_load_leaves_the_model_as_it_was(backend: str, tmp_path: Path) -> None:
    adam: dict[str, Any] = {"optimizer": torch.optim.AdamW}
    learner = Learner(Own(), methods.ER(8), Static(0.5), batch_size=8, **adam)
    learner.learn(streams.from_arrays(X, np.arange(24) % 4)[0])
    learner.save(tmp_path)
    for model, given in (
        (Own(4), {}),
        (Own(), {"optimizer": torch.optim.Adamax}),
        (Own(), {"method": methods.DERpp(8)}),
        (Own(), {"sparsifier": Static(0.7)}),
    ):
        before, weights = shape_of(model), copy.deepcopy(model.state_dict())
        with pytest.raises(SparclError):
            Learner.load(tmp_path, model, backend=backend, **{**adam, **given})
        assert shape_of(model) == before
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert Learner.load(tmp_path, model, backend=backend, **adam).learned == 1
    for wrong in ("resnet18", Own):
        with pytest.raises(ConfigError, match=r"model .* is not allowed; use an object"):
            Learner.load(tmp_path, wrong, **adam)  # type: ignore[arg-type]


# --- a head that grows ----------------------------------------------------------------------------------------------


def growing(**options: Any) -> Learner:
    settings = {"sparsifier": SET(0.5), "optimizer": torch.optim.AdamW, "average": 0.2, **options}
    return Learner(nn.ConvNet(1, channels=3, width=8), methods.ER(8), classes=(), batch_size=8, **settings)


BAD = {
    "one sample": streams.make_task(X[:1], ["dog"]),
    "another shape": streams.make_task(X[:, :, :6], ["dog", "fox"] * 12),
    "another dtype": streams.make_task(X.astype(np.float32), ["dog", "fox"] * 12),
    "another number of channels": streams.make_task(
        X, ["dog", "fox"] * 12, transform=streams.Transform(streams.Normalize((0.1, 0.2), (1.0, 1.0)))
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_refused_task_leaves_no_column(name: str, tmp_path: Path) -> None:
    learner = growing()
    learner.learn(streams.make_task(X, ["a", "b"] * 12))
    with pytest.raises(SparclError):
        learner.learn(BAD[name])
    assert learner.classes.names == ["a", "b"]
    assert learner.predict(X).probabilities.shape == (24, 2)
    learner.learn(streams.make_task(X, ["b", "cow"] * 12))
    assert learner.classes.names == ["a", "b", "cow"]
    assert Learner.load(learner.save(tmp_path).parent).classes.names == ["a", "b", "cow"]


def test_after_a_refused_task_the_next_is_learned_to_the_same_bits() -> None:
    def learned(refused: bool) -> Learner:
        torch.manual_seed(1)
        learner = growing()
        learner.learn(streams.make_task(X, ["a", "b"] * 12))
        if refused:
            for bad in BAD.values():
                with pytest.raises(SparclError):
                    learner.learn(bad)
        learner.learn(streams.make_task(X, ["b", "cow"] * 12))
        return learner

    one, other = learned(refused=True), learned(refused=False)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_stopped_after_its_first_step_keeps_its_columns() -> None:
    def stop(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end":
            raise KeyboardInterrupt

    learner = growing()
    learner.observers.append(stop)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(streams.make_task(X, ["a", "b"] * 12))
    assert learner.classes.names == ["a", "b"]
    seen = growing(average=None, sparsifier=None)
    seen.observers.append(stop)
    with pytest.raises(KeyboardInterrupt):
        seen.observe(X[:8], ["a", "b"] * 4)
    assert (seen.classes.names, seen.observed) == (["a", "b"], 8)


# --- other places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_learning_needs_no_gradient_mode_of_its_caller(mode: Callable[[], Any]) -> None:
    plain, inside = (Learner(network(), methods.ER(8), SparCL(0.5), batch_size=8) for _ in range(2))
    task = streams.from_arrays(X, np.arange(24) % 4)[0]
    plain.learn(task)
    plain.observe(X[:4], [0, 1, 2, 3])
    with mode():
        inside.learn(task)
        inside.observe(X[:4], [0, 1, 2, 3])
    for a, b in zip(plain.model.parameters(), inside.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learn_inside_a_step_is_refused_and_the_task_goes_on() -> None:
    def again(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end":
            with pytest.raises(ConfigError, match="learn was called inside a step"):
                learner.learn(blobs()[1])

    learner = Learner(Net(), observers=[again])
    for task in blobs():
        learner.observers = [again] if task.index == 0 else []
        learner.learn(task)
    assert learner.learned == 2


class Halved:
    """A transform that is none of ours, and has no settings."""

    def train(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        del generator
        return inputs / 510

    def test(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs / 510


def test_a_transform_of_ones_own_is_trained_with_saved_beside_and_given_back(tmp_path: Path) -> None:
    learner = Learner(network(), methods.ER(8), batch_size=8, checkpoint_dir=tmp_path)
    learner.learn(streams.from_arrays(X, np.arange(24) % 4, transform=Halved())[0])  # type: ignore[arg-type]
    again = Learner.load(learner.save(tmp_path).parent)
    again.transform = Halved()  # type: ignore[assignment]
    assert torch.equal(again.predict(X).probabilities, learner.predict(X).probabilities)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda learner: learner.evaluate(blobs()[0]),
        lambda learner: learner.evaluate(3),
        lambda learner: learner.save(None),
        lambda _: Learner.load(3),
    ],
)
def test_what_is_no_list_and_no_folder_is_one_line(wrong: Callable[[Learner], Any]) -> None:
    learner = Learner(Net())
    learner.learn(blobs()[0])
    with pytest.raises(ConfigError, match=r"evaluate takes tasks in a list|use the path of a folder"):
        wrong(learner)


def test_a_seed_that_is_allowed_can_be_loaded(tmp_path: Path) -> None:
    learner = Learner(network(), seed=2**63 - 1)
    learner.learn(streams.from_arrays(X, np.arange(24) % 4)[0])
    assert Learner.load(learner.save(tmp_path).parent).seed == 2**63 - 1


def test_numpys_numbers_are_saved(tmp_path: Path) -> None:
    learner = Learner(
        network(),
        micro_batch=np.int64(4),
        seconds=np.float32(0.05),
        warmup=np.float32(0.1),
        clip_grad_norm=np.int64(1),
        drop_last=np.bool_(True),
    )
    learner.learn(streams.from_arrays(X, np.arange(24) % 4)[0])
    assert Learner.load(learner.save(tmp_path).parent).settings == learner.settings


class Bare(torch.nn.Module):
    """A network without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(192, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("options", [{"classes": ()}, {"method": methods.ICaRL(8)}, {"method": methods.PackNet()}])
def test_a_network_without_a_layer_has_no_classifier(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        Learner(Bare(), **options).learn(streams.from_arrays(X, np.arange(24) % 4)[0])
