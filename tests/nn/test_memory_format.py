"""Any order in memory: the native backend computes it, and what was saved comes back in the order that it had."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import Net, blobs

from sparcl import Learner, SparCL, kernels
from sparcl.checkpoint import Store, tree
from sparcl.errors import CheckpointError
from sparcl.methods import DERpp
from sparcl.nn import ConvNet, build, memory

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
LAST = torch.channels_last


def channels_last(model: nn.Module) -> None:
    model.to(memory_format=LAST)  # type: ignore[call-overload]


def transposed(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.movedim(0, -1).contiguous().movedim(-1, 0)


def expanded(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.zeros(1).expand(parameter.shape)


def cut_out(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = torch.stack([parameter.data, parameter.data], -1)[..., 0]


ORDERS = [channels_last, transposed, expanded, cut_out]


def learned(backend: str, change: Callable[[nn.Module], None] | None, late: bool = False) -> dict[str, torch.Tensor]:
    model = Net()
    if change is expanded:  # its own numbers, laid out as usual, for the comparison
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
    if change is not None and not late:
        change(model)
    learner = Learner(model, DERpp(20), SparCL(0.5), backend=backend, epochs=2, batch_size=8)
    for task in blobs():
        learner.learn(task)
        if change is not None and late:
            change(learner.model)
    return {name: t.detach().clone() for name, t in learner.checkpoint_state()["model"].items()}


@NATIVE
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", [channels_last, transposed, cut_out])
def test_native_computes_any_order_to_the_same_bits(change: Callable[[nn.Module], None], late: bool) -> None:
    if late and change is not channels_last:
        pytest.skip("only channels_last is asked of a model that a Learner has")
    assert tree.difference(learned("native", None), learned("native", change, late)) is None


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=NATIVE), "auto"])
@pytest.mark.parametrize("change", ORDERS)
def test_every_backend_trains_a_model_of_any_order(change: Callable[[nn.Module], None], backend: str) -> None:
    assert all(bool(t.isfinite().all()) for t in learned(backend, change).values())


@NATIVE
def test_a_residual_network_made_channels_last_under_way_answers_as_before() -> None:
    model = build("resnet18", 4, (3, 8, 8), 4)
    learner = Learner(model, sparsifier=SparCL(0.5), backend="native")
    x = torch.randn(4, 3, 8, 8)
    before = learner.model.train()(x)
    channels_last(learner.model)
    assert torch.equal(learner.model(x), before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("given_model", [False, True])
def test_a_loaded_learner_has_the_order_that_it_was_saved_with(
    tmp_path: Path, given_model: bool, momentum: float
) -> None:
    stream = blobs(tasks=2, per_class=24)

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=momentum)

    torch.manual_seed(0)
    model = ConvNet(4, 2, 8)
    channels_last(model)
    whole = Learner(model, DERpp(20), SparCL(0.5), optimizer=optimizer, backend="reference", epochs=2, batch_size=8)
    whole.learn(stream[0])
    whole.save(tmp_path)
    other = ConvNet(4, 2, 8) if given_model else None
    loaded = Learner.load(tmp_path, other, optimizer=optimizer, backend="reference")
    strides = [p.stride() for p in whole.model.parameters()]
    assert [p.stride() for p in loaded.model.parameters()] == strides
    assert strides[0] != memory.usual_strides(next(whole.model.parameters()).shape)
    for state in loaded.optimizer.state.values():
        assert all(v.is_contiguous(memory_format=LAST) for v in state.values() if v is not None and v.dim() == 4)
    for learner in (whole, loaded):
        learner.learn(stream[1])
    assert tree.difference(whole.checkpoint_state(), loaded.checkpoint_state()) is None


def test_a_model_in_another_order_takes_the_default_one_that_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = Learner(ConvNet(4, 2, 8), sparsifier=SparCL(0.5), backend="reference")
    learner.save(tmp_path)
    other = ConvNet(4, 2, 8)
    channels_last(other)
    loaded = Learner.load(tmp_path, other, backend="reference")
    assert all(p.stride() == memory.usual_strides(p.shape) for p in loaded.model.parameters())


def test_a_checkpoint_of_before_still_loads() -> None:
    learner = Learner(ConvNet(4, 2, 8), sparsifier=SparCL(0.5), backend="reference")
    state = copy.deepcopy(learner.checkpoint_state())
    del state["settings"]["strides"]
    learner.restore(state)


@pytest.mark.parametrize("given", [3, {"stem.weight": 3}, {"absent": [1]}, {"stem.weight": [1, 1, 1, 1]}, None])
def test_strides_that_do_not_fit_are_refused(tmp_path: Path, given: object) -> None:
    learner = Learner(Net(), sparsifier=SparCL(0.5), backend="reference")
    state = learner.checkpoint_state()
    state["settings"]["strides"] = given
    Store(tmp_path).save(0, state)
    with pytest.raises(CheckpointError, match="strides"):
        Learner.load(tmp_path, Net(), backend="reference")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_permuted_memory_is_dense_and_a_cut_or_an_overlap_is_not(shape: list[int], random: object) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)  # type: ignore[attr-defined]
    tensor = torch.empty(shape).permute(order)
    assert memory.is_dense(tensor.stride(), tensor.shape)
    assert memory.usual_strides(shape) == torch.empty(shape).stride()
    assert not memory.is_dense((2 * math.prod(shape), *torch.empty(shape).stride()), (2, *shape))
    assert not memory.is_dense((0, *torch.empty(shape).stride()), (2, *shape))
