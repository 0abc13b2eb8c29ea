"""Micro-batches: the same step from passes of few samples, whatever the method; only BatchNorm sees the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparcl
from sparcl import methods, streams
from sparcl.cost.flops import Ledger
from sparcl.errors import ConfigError
from sparcl.kernels import available
from sparcl.learner import Learner
from sparcl.learner.micro import MicroBatches
from sparcl.methods import DERpp, Finetune
from sparcl.methods.method import Batch, Method
from sparcl.sparsity import RigL, SparCL
from sparcl.streams.task import Task

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not available(), reason="not compiled"))]
SHAPE = (2, 6, 5)


def network(*, norm: bool = False, dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    layers += [nn.Dropout(0.4)] if dropout else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 30, 12), nn.ReLU(), nn.Linear(12, 4))


def tasks() -> list[Task]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 4
    inputs = torch.randn(80, *SHAPE, generator=generator) + labels.view(-1, 1, 1, 1) * 0.5
    arrays = (inputs.numpy(), labels.numpy())
    return list(streams.from_arrays(*arrays, *arrays, classes_per_task=2))


def learned(micro: int | None, backend: str = "reference", **more: Any) -> Learner:
    settings: dict[str, Any] = {"batch_size": 10, "epochs": 2, "lr": 0.05, "seed": 3, "backend": backend, **more}
    made = settings.pop("network", network)()
    learner = Learner(made, micro_batch=micro, **settings)
    for task in tasks():
        learner.learn(task)
    return learner


def weights(learner: Learner) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.dense_model().parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_without_batchnorm_the_step_is_that_of_the_whole_batch(size: int, backend: str) -> None:
    def make() -> dict[str, Any]:
        return {"method": DERpp(buffer_size=20), "sparsifier": SparCL(sparsity=0.5), "backend": backend}

    whole, parts = learned(None, **make()), learned(size, **make())
    assert torch.allclose(weights(whole), weights(parts), atol=2e-5)
    for one, other in zip(whole.sparsifier.layers, parts.sparsifier.layers, strict=True):
        assert torch.equal(one.index, other.index)


@pytest.mark.parametrize("name", [n for n, m in methods.METHODS.items() if m.passes_in_parts and n != "joint"])
def test_every_method_sees_its_whole_batches(name: str) -> None:
    kind = methods.METHODS[name]

    def make() -> Method:
        return kind(buffer_size=20) if methods.has_buffer(kind) else kind()

    whole, parts = learned(None, method=make()), learned(3, method=make())
    # FDR's distance has no gradient at 0, where each sample's begins: rounding decides its direction
    assert torch.allclose(weights(whole), weights(parts), atol=2e-3 if name == "fdr" else 2e-5)


@pytest.mark.parametrize("ranking", ["step", "fresh"])
def test_ranking_is_that_of_the_whole_batch(ranking: str) -> None:
    def make() -> dict[str, Any]:
        sparsifier = SparCL(sparsity=0.5, ranking=ranking)
        return {"method": methods.ER(buffer_size=20), "sparsifier": sparsifier, "epochs": 12}

    whole, parts = learned(None, **make()), learned(4, **make())
    for one, other in zip(whole.sparsifier.layers, parts.sparsifier.layers, strict=True):
        assert torch.equal(one.index, other.index)


def test_what_ranks_all_positions_passes_whole_and_is_the_same() -> None:
    def make() -> dict[str, Any]:
        return {"method": methods.ER(buffer_size=20), "sparsifier": RigL(sparsity=0.5), "epochs": 12}

    assert torch.allclose(weights(learned(None, **make())), weights(learned(4, **make())), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_samples_pass_at_a_time_and_nothing_of_them_is_kept(backend: str) -> None:
    seen: list[tuple[int, bool]] = []

    def made() -> nn.Module:
        model = network(norm=True)
        model[0].register_forward_hook(lambda _, x, y: seen.append((len(x[0]), y.requires_grad)))
        return model

    make = {"method": DERpp(buffer_size=20), "sparsifier": SparCL(sparsity=0.5), "epochs": 1}
    learner = learned(4, backend, network=made, **make)
    steps = [(n, grad) for n, grad in seen if grad]
    assert max(n for n, _ in steps) == 4  # the batch that shows that a task fits is whole
    assert len(steps) > 8
    longest = run = 0
    for _, grad in seen:
        run = run + 1 if grad else 0
        longest = max(longest, run)
    assert longest >= 3  # the parts of a pass go back one after another
    seen.clear()
    learner.evaluate(tasks())
    assert len(learner.predict(tasks()[0].train.inputs[:9])) == 9
    assert {n for n, _ in seen} == {4, 1}


def test_batchnorm_has_the_statistics_of_a_part_and_counts_each_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()
    micro = MicroBatches(model, 4, lambda *_: None)
    x = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(2))
    alone = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()
    alone.load_state_dict(model.state_dict())
    with micro.applied():
        y = model(x)
        y.square().mean().backward()
    expected = torch.empty(10, 4)
    for part in micro.parts(10):
        expected[part] = alone(x[part])
    expected.square().mean().backward()
    assert torch.allclose(y, expected, atol=1e-6)
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)  # type: ignore[arg-type]
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(alone.named_buffers())[name]), name
    assert int(model[2].num_batches_tracked) == 3


def test_no_part_is_left_with_a_sample_that_a_batchnorm_cannot_take() -> None:
    norm = MicroBatches(nn.BatchNorm1d(3), 4, lambda *_: None)
    none = MicroBatches(nn.Linear(3, 3), 4, lambda *_: None)
    for samples in range(1, 40):
        for micro, most in ((norm, 5), (none, 4)):
            rows = torch.zeros(samples)
            sizes = [len(rows[part]) for part in micro.parts(samples)]
            for part in micro.parts(samples):
                rows[part] += 1
            assert rows.eq(1).all()
            assert max(sizes) <= most
            assert min(sizes) >= min(micro.least, samples)


def test_a_dropout_draws_the_same_on_the_way_back() -> None:
    model = network(dropout=True).train()
    micro = MicroBatches(model, 3, lambda *_: None)
    x = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(2), requires_grad=True)
    torch.manual_seed(5)
    with micro.applied():
        y = model(x)
    drawn = torch.rand(3)
    y.sum().backward()
    after = torch.rand(3)
    torch.manual_seed(5)
    answers = [model(x[part]) for part in micro.parts(7)]
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(after, torch.rand(3))  # the way back left no trace in the generator
    found = torch.autograd.grad(torch.cat(answers).sum(), x)[0]
    assert x.grad is not None
    assert torch.allclose(x.grad, found, atol=1e-6)


def test_weights_that_share_the_tensor_of_their_gradients_get_each_their_own() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.one + self.other).T

    model, x = Added(), torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with MicroBatches(model, 2, lambda *_: None).applied():
        model(x).square().sum().backward()
    for p, gradient in zip(model.parameters(), wanted, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, gradient, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_extra_pass_is_counted_as_executed_and_in_no_other_convention(backend: str) -> None:
    def counted(micro: int | None) -> Ledger:
        found: list[Ledger] = []

        def observe(event: str, figures: Any) -> None:
            found[0](event, figures)

        method, sparsifier = DERpp(buffer_size=20), SparCL(sparsity=0.5)
        settings: dict[str, Any] = {"batch_size": 10, "seed": 3, "backend": backend, "observers": [observe]}
        learner = Learner(network(), method, sparsifier, micro_batch=micro, **settings)
        found.append(Ledger(learner.model, learner.sparsifier.layers, SHAPE))
        for task in tasks():
            learner.learn(task)
        return found[0]

    whole, parts = counted(None), counted(5)
    assert parts.dense == whole.dense
    assert parts.paper == whole.paper
    assert parts.phases["backward"] == whole.phases["backward"]
    assert parts.phases["forward"] == 2 * whole.phases["forward"]
    assert parts.phases["importance"] > whole.phases["importance"]  # its pass back has one forward, too


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_goes_on_to_the_same_bits(backend: str, tmp_path: Any) -> None:
    def make() -> dict[str, Any]:
        return {"method": DERpp(buffer_size=20), "sparsifier": SparCL(sparsity=0.5), "batch_size": 10, "epochs": 2}

    first, second = tasks()
    whole = Learner(network(), **make(), backend=backend, micro_batch=4)
    whole.learn(first)
    saved = whole.save(tmp_path)
    whole.learn(second)
    again = Learner.load(saved, network(), backend=backend)
    assert again.settings["micro_batch"] == 4
    again.learn(second)
    assert torch.equal(weights(whole), weights(again))
    other = Learner(network(), **make(), backend=backend)
    with pytest.raises(sparcl.errors.CheckpointError, match=r"micro batch is None here, but 4 in the checkpoint"):
        other.restore(whole.checkpoint_state())


@pytest.mark.parametrize("value", [0, -3, 11])
def test_a_micro_batch_is_a_part_of_the_batch(value: int) -> None:
    with pytest.raises(ConfigError, match=rf"micro-batch {value} is not allowed; use 1 to the batch size, 10"):
        Learner(network(), batch_size=10, micro_batch=value)


def test_one_sample_at_a_time_is_refused_where_a_batchnorm_trains() -> None:
    with pytest.raises(ConfigError, match=r"micro-batch 1 is not allowed with layer 1 \(BatchNorm2d\)"):
        Learner(network(norm=True), batch_size=10, micro_batch=1)
    assert learned(1, method=Finetune()).steps == 16


def test_a_method_that_passes_through_other_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="method lps passes through weights that are not the model's own"):
        Learner(network(), methods.LPS(), batch_size=10, micro_batch=2)


def test_a_loss_of_parts_of_the_model_is_refused() -> None:
    class OfParts(Finetune):
        def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
            parts: Callable[[Tensor], Tensor] = nn.Sequential(*self.host.model.children())
            logits = parts(batch.inputs)
            return self.cross_entropy(logits, batch), logits

    learner = Learner(network(), OfParts(), batch_size=10, micro_batch=2)
    with pytest.raises(ConfigError, match="micro-batches need calls of the whole model"):
        learner.learn(tasks()[0])


def test_samples_of_a_stream_without_borders_pass_in_parts_too() -> None:
    def observed(micro: int | None) -> Learner:
        learner = Learner(network(), methods.ER(buffer_size=20), seed=3, batch_size=10, micro_batch=micro, steps=100)
        for task in tasks():
            for start in range(0, len(task.train), 10):
                learner.observe(task.train.inputs[start : start + 10], task.train.labels[start : start + 10])
        return learner

    assert torch.allclose(weights(observed(None)), weights(observed(4)), atol=2e-5)
