"""The ledger against PyTorch's own FLOP counter, and against counts by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

import sparcl.nn as models
from sparcl.cost.flops import Ledger, left_out
from sparcl.learner import Learner
from sparcl.methods import DER, ER, DERpp, Finetune
from sparcl.methods.method import Method
from sparcl.nn import sparse_layers
from sparcl.sparsity import DDR, DGM, Sparsifier
from sparcl.sparsity.sparcl import SparCL
from tests.toys import PRUNABLE_OF_NET, Net, blobs

TOYS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("resnet18", lambda: models.resnet18(10, 3, width=8), (3, 32, 32)),
    ("convnet", lambda: models.ConvNet(10), (1, 8, 8)),
    ("mlp", lambda: models.MLP(10, (1, 28, 28)), (1, 28, 28)),
    ("grouped", Net, (2, 6, 6)),
    ("shared", lambda: Shared(), (12,)),
]

each_model = pytest.mark.parametrize(("build", "shape"), [t[1:] for t in TOYS], ids=[t[0] for t in TOYS])


class Shared(nn.Module):
    """A layer used twice in one pass, on sequences [N, 3, 4] the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(12, 4), nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.first(x).relu())
        h = self.inner(h[:, None, :].repeat(1, 3, 1))
        logits: Tensor = self.last(h.flatten(1))
        return logits


def grouped_backward(gradient: Any, x: Any, weight: Any, *rest: Any, out_shape: Any) -> int:
    """PyTorch's formula where there is one group; where there are more it counts the weight gradient too often."""
    groups, output_mask = rest[6], rest[7]
    if groups == 1:
        return conv_backward_flop(gradient, x, weight, *rest, out_val=out_shape)
    return 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight) * sum(output_mask[:2])


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of `work` by PyTorch's counter."""
    mapping = {torch.ops.aten.convolution_backward: grouped_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_total_flops()


def ledger_in_task(model: nn.Module, shape: tuple[int, ...], layers: list[Any] | None = None) -> Ledger:
    ledger = Ledger(model, layers or [], shape)
    ledger("task.begin", {})
    return ledger


@each_model
def test_a_dense_forward_pass_is_what_pytorch_counts(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = build().eval()
    ledger = ledger_in_task(model, shape)
    with torch.no_grad():
        expected = counted(lambda: model(torch.randn(3, *shape)))
    assert ledger.executed == ledger.dense == expected > 0


@each_model
def test_a_dense_training_pass_is_what_pytorch_counts(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = build()
    ledger = ledger_in_task(model, shape)
    expected = counted(lambda: model(torch.randn(3, *shape)).square().sum().backward())
    assert ledger.executed == expected


@each_model
def test_an_importance_pass_is_what_pytorch_counts(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = build()
    layers = sparse_layers(model)
    ledger = ledger_in_task(model, shape, layers)

    def rank() -> None:
        ledger("importance.begin", {})
        loss = model(torch.randn(3, *shape)).square().sum()
        ledger("importance.end", {})
        torch.autograd.grad(loss, [layer.parameter for layer in layers])

    assert ledger.executed == 0
    expected = counted(rank)
    assert ledger.executed == expected
    assert ledger.dense == ledger.paper == 0


def test_an_importance_pass_goes_no_further_down_than_the_lowest_prunable_layer() -> None:
    model = Net()
    ledger = ledger_in_task(model, (2, 6, 6), sparse_layers(model, ["hidden"]))
    ledger("importance.begin", {})
    model(torch.randn(4, 2, 6, 6))
    hidden, classifier = 2 * 8 * 12, 2 * 12 * 4
    convolutions = 2 * 36 * (8 * 2 * 9 + 8 * 4 * 9) + 2 * 9 * 8 * 8 * 9
    assert ledger.executed == 4 * (convolutions + 2 * hidden + 2 * classifier)


def test_frozen_parameters_cost_no_weight_gradient() -> None:
    model = models.ConvNet(10)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    ledger = ledger_in_task(model, (1, 8, 8))
    assert ledger.executed == 0
    expected = counted(lambda: model(torch.randn(2, 1, 8, 8)).sum().backward())
    assert ledger.executed == expected


def test_a_sparse_step_costs_its_active_and_its_updated_weights() -> None:
    model = Net()
    layers = sparse_layers(model, PRUNABLE_OF_NET)
    ledger = ledger_in_task(model, (2, 6, 6), layers)
    positions = {"stem": 36, "grouped": 36, "conv": 9, "hidden": 1, "classifier": 1}
    active = {name: model.get_submodule(name).weight.numel() for name in positions}
    updated = dict(active)
    for layer, k, u in zip(layers, (30, 40, 7), (30, 25, 1), strict=True):
        layer.set_index(torch.arange(k))
        layer.set_chosen(torch.arange(k) < u)
        active[layer.name], updated[layer.name] = k, u
    ledger("tdm.update", {})

    forward = sum(2 * positions[name] * active[name] for name in positions)
    weight = sum(2 * positions[name] * updated[name] for name in positions)
    below_stem = 2 * positions["stem"] * active["stem"]
    ledger("step.begin", {"samples": 6})
    model(torch.randn(6, 2, 6, 6))
    model(torch.randn(5, 2, 6, 6))
    ledger("step.end", {})
    assert ledger.executed == 11 * (forward + (forward - below_stem) + weight)
    assert ledger.paper == 6 * (2 * forward + weight) + 5 * forward


def test_masks_are_read_anew_after_they_moved() -> None:
    model = Net()
    layers = sparse_layers(model, PRUNABLE_OF_NET)
    ledger = ledger_in_task(model, (2, 6, 6), layers)
    x = torch.randn(1, 2, 6, 6)
    spent = []
    for k in (50, 10):
        for layer in layers:
            layer.set_index(torch.arange(k))
        ledger("tdm.update", {"active": 3 * k})
        before = ledger.executed
        with torch.no_grad():
            model(x)
        spent.append(ledger.executed - before)
    assert spent[0] - spent[1] == 2 * 40 * (36 + 9 + 1)


def test_evaluation_and_what_is_outside_a_task_are_not_counted() -> None:
    model = Net()
    ledger = Ledger(model, [], (2, 6, 6))
    x = torch.randn(3, 2, 6, 6)
    model(x)
    ledger("task.begin", {})
    ledger("evaluate.begin", {})
    model(x)
    ledger("evaluate.end", {})
    assert ledger.executed == 0
    model(x)
    spent = ledger.executed
    assert spent > 0
    ledger("task.end", {})
    model(x)
    assert ledger.executed == spent


def test_a_teacher_is_counted_forward_only() -> None:
    """A deep copy reports by itself; another network does once it is watched."""
    model, other = Net(), nn.Sequential(nn.Flatten(), nn.Linear(72, 5))
    ledger = ledger_in_task(model, (2, 6, 6))
    teacher = copy.deepcopy(model)
    ledger.watch(other)
    x = torch.randn(3, 2, 6, 6)
    with torch.no_grad():
        expected = counted(lambda: (teacher(x), other(x)))
    assert ledger.executed == expected == ledger.dense


def test_looking_leaves_no_trace() -> None:
    model = Net(dropout=0.5)
    model.norm1.eval()
    model.stem.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    Ledger(model, sparse_layers(model, PRUNABLE_OF_NET), (2, 6, 6))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [
        name != "stem.weight" for name, _ in model.named_parameters()
    ]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def prepared(
    method: Method,
    sparsifier: Sparsifier | None,
    epochs: int = 5,
    batch_size: int = 6,
    drop_last: bool | None = None,
) -> tuple[Learner, Ledger]:
    learner = Learner(Net(), method, sparsifier, lr=0.05, epochs=epochs, batch_size=batch_size, drop_last=drop_last)
    ledger = Ledger(learner.model, learner.sparsifier.layers, (2, 6, 6))
    learner.observers.append(ledger)
    return learner, ledger


def trained(
    method: Method,
    sparsifier: Sparsifier | None,
    epochs: int = 5,
    batch_size: int = 6,
    drop_last: bool | None = None,
) -> Ledger:
    learner, ledger = prepared(method, sparsifier, epochs, batch_size, drop_last)
    for task in blobs():
        learner.learn(task)
    return ledger


@pytest.mark.parametrize("make", [Finetune, lambda: ER(20), lambda: DER(20), lambda: DERpp(20)])
def test_training_densely_executes_what_pytorch_counts(make: Callable[[], Method]) -> None:
    learner, ledger = prepared(make(), None, epochs=1)
    with torch.no_grad():  # the batch that is answered before each task, to see that the model fits
        trials = 2 * counted(lambda: learner.model(torch.randn(6, 2, 6, 6)))
    expected = counted(lambda: [learner.learn(task) for task in blobs()])
    assert ledger.executed == ledger.dense == expected - trials


@pytest.mark.parametrize(
    ("sparsifier", "batch_size"),
    [
        (lambda: SparCL(0.75, prunable=PRUNABLE_OF_NET), 6),
        (lambda: SparCL(0.75, prunable=PRUNABLE_OF_NET), 39),
        (lambda: DDR(0.6), 7),
        (lambda: DGM(0.5, interval=3, prunable=PRUNABLE_OF_NET), 6),
    ],
)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("epochs", [1, 5])
def test_dense_is_what_the_host_executes_without_a_sparsifier(
    sparsifier: Callable[[], Sparsifier], batch_size: int, epochs: int, drop_last: bool
) -> None:
    """Although samples leave, in the middle of an epoch too, and a removal may leave less than a batch."""
    host = Finetune if batch_size > 20 else lambda: ER(20)  # a task's only step must not be the buffer's first
    dense = trained(host(), None, epochs, batch_size, drop_last)
    sparse = trained(host(), sparsifier(), epochs, batch_size, drop_last)
    assert sparse.dense == dense.executed


def test_samples_seen_and_removed() -> None:
    ledger = trained(ER(20), SparCL(0.75, prunable=PRUNABLE_OF_NET), epochs=10)
    assert ledger.samples_removed == 2 * 12
    removed = [3, 6, 9, 12]
    per_task = 6 * sum((40 - left) // 6 for left in (0, *removed, *(12,) * 5))
    assert ledger.samples_seen == 2 * per_task


def test_ranking_is_executed_and_is_no_part_of_the_papers_count() -> None:
    """What SparCL executes beyond its steps: forward and backward passes for TDM and DGM, or one pass back a task."""
    quiet = trained(Finetune(), SparCL(0.0, gradients=0.0, samples=0.0, prunable=PRUNABLE_OF_NET))
    ranking = trained(Finetune(), DGM(1e-6, interval=1, ranking="fresh", prunable=PRUNABLE_OF_NET))
    by_steps = trained(Finetune(), DGM(1e-6, interval=1, prunable=PRUNABLE_OF_NET))
    assert by_steps.paper == ranking.paper == quiet.paper
    steps = 2 * 5 * (40 // 6)
    model = Net()
    importance = counted(
        lambda: torch.autograd.grad(
            F.cross_entropy(model(torch.randn(6, 2, 6, 6)), torch.zeros(6, dtype=torch.int64)),
            [model.get_submodule(name).weight for name in PRUNABLE_OF_NET],
        )
    )
    assert ranking.executed - quiet.executed == steps * importance
    forward = counted(lambda: model(torch.randn(6, 2, 6, 6)))
    assert by_steps.executed - quiet.executed == 2 * (importance - forward)


def test_a_step_that_is_ranked_by_computes_the_gradients_of_the_frozen_too() -> None:
    model = Net()
    ledger = Ledger(model, layers := sparse_layers(model, PRUNABLE_OF_NET), (2, 6, 6))
    ledger("task.begin", {})
    every, all_active = ledger.main.costs.backward, ledger.main.costs.importance
    for layer in layers:
        layer.set_chosen(torch.arange(len(layer.index)) % 2 == 0)
    ledger("dgm.choose", {})
    half = ledger.main.costs.backward
    assert half < every
    ledger("importance.passed", {"extra": 5, "repeated": 3, "samples": 7})
    assert ledger.executed == 5 * all_active + 3 * every + 7 * (every - half)
    assert ledger.paper == 0


def test_gradients_at_inactive_weights_are_executed() -> None:
    """What SNIP and RigL rank is charged at every weight, with the mask of that time, not the one that follows."""
    model = Net()
    layers = sparse_layers(model, PRUNABLE_OF_NET)
    for layer in layers:
        layer.set_index(torch.arange(10))
    spent = []
    for figures in ({}, {"dense_gradient_samples": 5}):
        ledger = ledger_in_task(model, (2, 6, 6), layers)
        ledger("importance.begin", {})
        model(torch.randn(5, 2, 6, 6))
        ledger("importance.end", {})
        layers[0].set_index(torch.arange(20))
        ledger("snip.prune", figures)
        layers[0].set_index(torch.arange(10))
        spent.append(ledger.executed)
    inactive = 36 * (8 * 4 * 9 - 10) + 9 * (8 * 8 * 9 - 10) + (8 * 12 - 10)
    again = 36 * 8 * 4 * 9 + 9 * 8 * 8 * 9 + 8 * 12  # a forward pass of each layer with all its weights
    assert spent[1] - spent[0] == 5 * 2 * (inactive + again)


def test_a_ledger_goes_on_from_its_state() -> None:
    """Stopped inside an epoch, inside a task."""
    model = Net()
    script = [
        ("task.begin", {}),
        ("epoch.begin", {"steps": 3, "dense_steps": 5, "dense_last": 4, "dense_as_long": False}),
        *[("step.begin", {"samples": 4}), ("step.end", {})] * 2,
        ("ddr.remove", {"removed": 3}),
        *[("step.begin", {"samples": 4}), ("step.end", {})],
        ("epoch.end", {}),
        ("task.end", {}),
    ]

    def play(ledger: Ledger, events: list[Any]) -> None:
        for event, figures in events:
            ledger(event, figures)
            if event == "step.begin":
                ledger.count(6, grad=True)

    whole = Ledger(model, [], (2, 6, 6))
    play(whole, script)
    for cut in range(len(script)):
        if script[cut][0] == "step.end":
            continue  # a state is taken between steps
        first, second = Ledger(model, [], (2, 6, 6)), Ledger(model, [], (2, 6, 6))
        play(first, script[:cut])
        second.load_state_dict(first.state_dict())
        play(second, script[cut:])
        assert second.state_dict() == whole.state_dict()
    assert whole.dense == 5 * whole.executed // 3


def test_flops_by_phase_add_up_to_what_was_executed() -> None:
    """Ranking apart, what a method computes between its steps apart; a resumed ledger keeps them apart."""
    model = Net()
    ledger = Ledger(model, [], (2, 6, 6))
    ledger("task.begin", {})
    one = ledger.main.costs
    ledger.count(3, grad=False)
    ledger("importance.begin", {})
    ledger.count(5, grad=True)
    ledger("importance.end", {})
    ledger("step.begin", {"samples": 4})
    ledger.count(4, grad=True)
    ledger.count(2, grad=False)
    ledger("step.end", {})
    assert ledger.phases == {
        "forward": 6 * one.forward,
        "backward": 4 * one.backward,
        "importance": 5 * (one.forward + one.importance),
        "other": 3 * one.forward,
    }
    assert ledger.executed == sum(ledger.phases.values()) > 0
    resumed = Ledger(model, [], (2, 6, 6))
    resumed.load_state_dict(ledger.state_dict())
    assert resumed.phases == ledger.phases


class Mixed(nn.Module):
    """Layers that multiply and are no convolution or linear layer, beside some that do not multiply. [N, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm((3, 4))
        self.recurrent = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 4) + self.embedding.weight
        x = self.norm(self.attention(x, x, x, need_weights=False)[0])
        logits: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return logits


def test_layers_that_no_count_sees_are_named() -> None:
    assert left_out(Mixed()) == ["attention (MultiheadAttention)", "recurrent (GRU)"]
    assert all(left_out(build()) == [] for _, build, _ in TOYS)


@pytest.mark.parametrize("batch_size", [6, 39, 64])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("stopped", [False, True])
def test_dense_is_a_host_of_as_many_steps_under_another_budget(batch_size: int, drop_last: bool, stopped: bool) -> None:
    """Partial batches too, of passes that are its own: samples that leave shorten ours."""

    def run(sparsifier: Sparsifier | None) -> Ledger:
        model = Net()
        learner = Learner(model, Finetune(), sparsifier, lr=0.05, steps=23, batch_size=batch_size, drop_last=drop_last)
        ledger = Ledger(model, learner.sparsifier.layers, (2, 6, 6))

        def go_on_from_state(event: str, figures: dict[str, Any]) -> None:
            del figures
            if stopped and event == "step.end":
                state = ledger.state_dict()
                ledger.load_state_dict(dict.fromkeys(state, 0))
                ledger.load_state_dict(state)

        learner.observers += [ledger, go_on_from_state]
        for task in blobs():
            learner.learn(task)
        return ledger

    dense = run(None)
    assert dense.dense == dense.executed
    assert run(DDR(0.6)).dense == dense.executed
