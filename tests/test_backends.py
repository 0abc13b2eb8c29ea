"""The native backend against the reference backend: the same training, masks, counts and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nn.native import needs_native
from torch import Tensor, nn
from toys import Net, blobs

import sparcl
from sparcl import kernels, methods, sparsity, streams
from sparcl.errors import ConfigError
from sparcl.learner import Learner
from sparcl.nn import ConvNet, auto, convert
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d, CompactLayer, CompactLinear
from sparcl.sparsity import Losses, Pattern, Sparsifier

pytestmark = needs_native

BACKENDS = ("reference", "native")


def digits_accuracy(backend: str, seed: int) -> float:
    """Class-IL after seq-digits, SparCL-DER++ at .9."""
    torch.manual_seed(seed)
    learner = Learner(
        ConvNet(10, 1, width=16),
        methods.DERpp(100),
        sparcl.SparCL(0.9),
        lr=0.1,
        epochs=3,
        batch_size=16,
        seed=seed,
        backend=backend,
    )
    for task in streams.seq_digits():
        learner.learn(task)
    assert learner.backend == backend
    class_il = learner.evaluate().class_il
    assert class_il is not None
    return sum(class_il) / len(class_il)


def test_whole_training_is_as_accurate_on_both_backends() -> None:
    """Rounding sets two runs apart within some steps; their means over three seeds must stay within noise."""
    reference, native = ([digits_accuracy(backend, seed) for seed in range(3)] for backend in BACKENDS)
    spread = max(torch.tensor(reference).std().item(), torch.tensor(native).std().item())
    assert sum(native) / 3 > 30.0
    assert abs(sum(native) - sum(reference)) / 3 <= 2 * spread + 3.0


class Pull:
    """A loss whose gradient at weight i of a layer is `direction[i]`, whatever computes the layer."""

    def __init__(self, sparsifier: Sparsifier, seed: int) -> None:
        self.sparsifier, self.generator = sparsifier, torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        total = torch.zeros(())
        for layer in self.sparsifier.layers:
            direction = torch.randn(layer.shape, generator=self.generator).flatten()
            if isinstance(layer, CompactLayer):
                total = total + (layer.parameter * direction[layer.index]).sum()
            else:
                total = total + (layer.parameter.flatten() * direction).sum()
        return total


def masks_of(backend: str, sparsifier: Sparsifier) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Positions, choice and weights of each layer after two tasks under known gradients."""
    model = Net()
    if backend == "native":
        convert.to_native(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier.attach(model, optimizer, seed=3)
    pull, replay = Pull(sparsifier, 1), Pull(sparsifier, 2)
    seen = []
    for task in range(2):
        sparsifier.begin_task(task, samples=100, epochs=10, losses=Losses(pull, replay))
        for epoch in range(10):
            sparsifier.begin_epoch(epoch, 2)
            for step in range(2):
                sparsifier.begin_step(step)
                optimizer.zero_grad()
                pull().backward()
                sparsifier.after_backward()
                optimizer.step()
                sparsifier.after_step()
                seen += [(la.index, la.chosen, la.gather(la.parameter)) for la in sparsifier.layers]
        sparsifier.end_task()
    return seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparcl.SparCL(0.75, gradients=0.3),
        lambda: sparcl.SparCL(0.75, pattern="block", block_size=4),
        lambda: sparsity.TDM(0.5, pattern=Pattern(2)),
        lambda: sparsity.SPARSIFIERS["set"](0.75),
        lambda: sparsity.SPARSIFIERS["static"](0.75),
    ],
    ids=["sparcl", "sparcl-block", "tdm-block2", "set", "static"],
)
def test_the_same_masks_and_weights_to_the_bit_under_the_same_gradients(make: object) -> None:
    reference, native = (masks_of(backend, make()) for backend in BACKENDS)  # type: ignore[operator]
    assert len(reference) == len(native) > 0
    for (index, chosen, values), (index_n, chosen_n, values_n) in zip(reference, native, strict=True):
        assert torch.equal(index, index_n)
        assert (chosen is None) == (chosen_n is None)
        assert chosen is None or torch.equal(chosen, chosen_n)
        assert torch.equal(values, values_n)


def masks_in_a_stream(backend: str, sparsifier: Sparsifier) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """As `masks_of`, in 23 steps without a task."""
    model = Net()
    if backend == "native":
        convert.to_native(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier.attach(model, optimizer, seed=3)
    pull = Pull(sparsifier, 1)
    sparsifier.begin_stream(Losses(pull, Pull(sparsifier, 2)))
    seen = []
    for step in range(23):
        sparsifier.begin_step(step)
        optimizer.zero_grad()
        pull().backward()
        sparsifier.after_backward()
        optimizer.step()
        sparsifier.after_step()
        seen += [(la.index, la.chosen, la.gather(la.parameter)) for la in sparsifier.layers]
    return seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: sparcl.SparCL(0.75, gradients=0.3, interval=5),
        lambda: sparcl.SparCL(0.75, pattern="block", block_size=4, interval=5),
        lambda: sparsity.TDM(0.5, interval=4),
        lambda: sparsity.DGM(0.3, interval=4),
    ],
    ids=["sparcl", "sparcl-block", "tdm", "dgm"],
)
def test_in_a_stream_without_borders_the_same_masks_and_weights_to_the_bit(make: object) -> None:
    reference, native = (masks_in_a_stream(backend, make()) for backend in BACKENDS)  # type: ignore[operator]
    assert len(reference) == len(native) > 0
    for (index, chosen, values), (index_n, chosen_n, values_n) in zip(reference, native, strict=True):
        assert torch.equal(index, index_n)
        assert (chosen is None) == (chosen_n is None)
        assert chosen is None or torch.equal(chosen, chosen_n)
        assert torch.equal(values, values_n)


def sparsifier(name: str) -> Sparsifier:
    return Sparsifier() if name == "dense" else sparsity.SPARSIFIERS[name](0.8)


def allowed(method: str, name: str) -> bool:
    made = sparsifier(name)
    try:
        methods.METHODS[method].check(name, prunes=made.prunes, moves=made.moves)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "name"), [(m, n) for m in methods.METHODS for n in sparsity.SPARSIFIERS if allowed(m, n)]
)
def test_every_method_and_sparsifier_answers_the_same_on_both_backends(method: str, name: str) -> None:
    answers = []
    for backend in BACKENDS:
        stream = blobs()
        learner = Learner(
            Net(), methods.find(method)(), sparsifier(name), lr=0.05, epochs=2, batch_size=10, backend=backend
        )
        tasks = list(stream.merged() if methods.find(method).learns_all_at_once else stream)
        for task in tasks:
            learner.learn(task)
        assert learner.evaluate(tasks).task_il
        answers.append(torch.cat([learner.method.predict(task.test.inputs, task) for task in tasks]))
        if backend == "native":
            assert any(isinstance(module, CompactLayer) for module in learner.model.modules())
            for layer in learner.sparsifier.layers:
                assert isinstance(layer, CompactLayer)
                assert len(layer.values) == len(layer.index) < torch.Size(layer.shape).numel()
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)


def test_two_native_runs_with_one_seed_are_the_same_to_the_bit_on_any_number_of_threads() -> None:
    states = []
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        learner = Learner(Net(), methods.DERpp(20), sparcl.SparCL(0.5), epochs=2, batch_size=8, backend="native")
        for task in blobs():
            learner.learn(task)
        states.append(convert.dense_state_dict(learner.model))
    torch.set_num_threads(1)
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in other)


def test_no_dense_tensor_of_a_sparse_layer_is_left() -> None:
    make = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    learner = Learner(ConvNet(4, 2, width=16), sparsifier=sparcl.SparCL(0.9), optimizer=make, backend="native")
    learner.learn(blobs().tasks[0])
    sizes = {torch.Size(layer.shape).numel() for layer in learner.sparsifier.layers}
    held = [*learner.model.parameters(), *learner.model.buffers()]
    held += [p.grad for p in learner.model.parameters() if p.grad is not None]
    held += [t for state in learner.optimizer.state.values() for t in state.values()]
    assert not sizes & {tensor.numel() for tensor in held}


def test_the_chosen_gradients_alone_are_computed() -> None:
    learner = Learner(
        ConvNet(4, 2, width=8), sparsifier=sparcl.SparCL(0.5, gradients=0.4), epochs=1, batch_size=10, backend="native"
    )
    learner.learn(blobs().tasks[0])
    x = torch.randn(7, 2, 6, 6)
    loss = learner.model(x).square().sum()
    kernels.reset_counters()
    loss.backward()
    positions = {"3": 36, "6": 9, "9": 9}
    chosen = sum(int(la.chosen.sum()) * positions[la.name] for la in learner.sparsifier.layers if la.chosen is not None)
    stem = 2 * 8 * 9 * 36
    assert kernels.counters()["weight_gradient"] == 7 * (chosen + stem)


def test_native_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="for the CPU"):
        auto.select_backend("native", Net(), torch.device("cuda"), prunes=True)
    with pytest.raises(ConfigError, match="auto, native, reference"):
        Learner(Net(), backend="quick")
    monkeypatch.setattr(kernels, "why_unavailable", lambda: "the compiled part of sparcl is missing")
    monkeypatch.setattr(kernels, "available", lambda: False)
    with pytest.raises(ConfigError, match="compiled part of sparcl is missing"):
        Learner(Net(), sparsifier=sparcl.SparCL(), backend="native")
    assert Learner(Net(), sparsifier=sparcl.SparCL()).backend == "reference"  # auto falls back


def test_auto_leaves_what_is_not_pruned_to_pytorch() -> None:
    assert Learner(Net()).backend == "reference"
    assert Learner(Net(), sparsifier=sparsity.DDR()).backend == "reference"
    assert Learner(Net().double(), sparsifier=sparcl.SparCL()).backend == "reference"


def test_a_compiled_model_is_not_for_native() -> None:
    model = torch.compile(Net(), backend="eager")
    with pytest.raises(ConfigError, match="give it the model without"):
        Learner(model, None, sparcl.SparCL(0.5), backend="native")
    assert Learner(model, None, sparcl.SparCL(0.5)).backend == "reference"


@pytest.mark.parametrize(("backend", "sparsifier"), [("reference", sparcl.SparCL(0.5)), ("auto", None)])
def test_a_compact_model_is_not_taken_for_a_dense_one(backend: str, sparsifier: sparcl.SparCL | None) -> None:
    model = Net()
    Learner(model, None, sparcl.SparCL(0.5), backend="native")
    with pytest.raises(ConfigError, match="compact already"):
        Learner(model, None, sparsifier, backend=backend)


@pytest.mark.parametrize("options", [{"prunable": ["conv"]}, {"freeze": ["grouped"]}])
def test_a_sparse_layer_that_would_not_be_pruned_is_refused(options: dict[str, Any]) -> None:
    """It could be trained, but no checkpoint knows where its weights are."""
    model = Net()
    Learner(model, sparsifier=sparsity.Static(0.5), backend="native")
    static = sparsity.Static(0.5, prunable=options.pop("prunable", None))
    with pytest.raises(ConfigError, match=r"layer grouped is sparse already, but not to be pruned here"):
        Learner(model, sparsifier=static, **options)


def test_a_layer_that_is_compact_stays_so_whatever_is_measured() -> None:
    model = Net()
    first = Learner(model, sparsifier=sparsity.Static(0.9), backend="native")
    names = [layer.name for layer in first.sparsifier.layers]
    second = Learner(model, sparsifier=sparsity.Static(0.1))
    assert second.layer_choice == dict.fromkeys(names, "native")
    with pytest.raises(ConfigError, match="layer grouped is compact already"):
        Learner(model, sparsifier=sparsity.Static(0.1), layer_choice=dict.fromkeys(names, "dense"))


def test_auto_measures_and_a_recorded_choice_is_replayed() -> None:
    learner = Learner(Net(), sparsifier=sparcl.SparCL(0.5), backend="auto")
    assert set(learner.layer_choice) == {"grouped", "conv", "hidden"}
    assert set(learner.layer_choice.values()) <= set(convert.CHOICES)
    choice = {"grouped": "dense", "conv": "native", "hidden": "dense"}
    replayed = Learner(Net(), sparsifier=sparcl.SparCL(0.5), backend="auto", layer_choice=choice)
    assert replayed.layer_choice == choice
    kinds = {la.name: "native" if isinstance(la, CompactLayer) else "dense" for la in replayed.sparsifier.layers}
    assert kinds == choice
    replayed.learn(blobs().tasks[0])
    sparsity_reached = [len(la.index) / torch.Size(la.shape).numel() for la in replayed.sparsifier.layers]
    assert sparsity_reached == pytest.approx([0.5, 0.5, 0.5], abs=0.02)


def test_auto_chooses_dense_where_it_is_faster_by_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {nn.Linear: 1.0, CompactLinear: 1.2, BatchLastConv2d: 1.0, CompactConv2d: 1.3}
    monkeypatch.setattr(auto, "_seconds", lambda layer, _: seconds[type(layer)])
    chosen = auto.measure(Net(), None, sparsity.Static(0.5).densities, 1, 4, (2, 6, 6))
    assert chosen == {"grouped": "dense", "conv": "dense", "hidden": "native"}


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_auto_measures_each_layer_at_its_own_density(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    measured: dict[tuple[int, ...], int] = {}

    def seconds(layer: nn.Module, _: Tensor) -> float:
        if isinstance(layer, CompactLayer):
            measured[layer.shape] = len(layer.index)
        return 1.0

    monkeypatch.setattr(auto, "_seconds", seconds)
    learner = Learner(
        Net(),
        sparsifier=sparcl.SparCL(
            0.75, pattern=pattern, **({"block_size": 2} if pattern == "block" else {}), distribution="erk"
        ),
    )
    assert measured == {layer.shape: len(layer.index) for layer in learner.sparsifier.layers}
    assert len({round(active / torch.Size(shape).numel(), 2) for shape, active in measured.items()}) == 3


def test_a_batch_size_that_stands_for_all_samples_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: set[int] = set()
    monkeypatch.setattr(auto, "_seconds", lambda _, x: batches.add(len(x)) or 1.0)
    Learner(Net(), sparsifier=sparcl.SparCL(0.5), batch_size=10**9, input_shape=(2, 6, 6))
    assert max(batches) == auto.MOST_SAMPLES


def test_measuring_leaves_no_trace() -> None:
    model = Net()
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    auto.measure(model, None, sparsity.Static(0.9).densities, 4, 4, (2, 6, 6))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [type(m) for m in model.children()][:2] == [nn.Conv2d, nn.BatchNorm2d]


def test_a_run_records_what_really_ran(tmp_path: Path) -> None:
    from sparcl.main import _main

    arguments = ["run", "seq-digits", "--epochs", "1", "--limit-per-class", "20", "--width", "8", "--threads", "1"]
    for backend in BACKENDS:
        assert _main([*arguments, "--backend", backend, "--out", str(tmp_path / backend)]) == 0
    results = {b: json.loads((tmp_path / b / "result.json").read_text()) for b in BACKENDS}
    assert results["native"]["backend"] == {
        "name": "native",
        "native": ["3", "6", "9"],
        "reference": [],
        "isa": kernels.isa(),
    }
    assert results["reference"]["backend"]["reference"] == ["3", "6", "9"]
    assert results["native"]["flops"]["executed"] == results["reference"]["flops"]["executed"]
