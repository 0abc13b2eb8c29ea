"""One model and more than one who would move it: a second Learner, an older state, a copy of what answers for now."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nn.native import needs_native
from toys import blobs

from sparcl import Learner, sparsity
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import ER
from sparcl.nn import ConvNet

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.02, momentum=0.9)


def made(
    sparsifier: sparsity.Sparsifier | None = None, model: torch.nn.Module | None = None, **options: Any
) -> Learner:
    torch.manual_seed(0)
    return Learner(model or ConvNet(6, 2, 8), ER(10), sparsifier, optimizer=momentum, batch_size=8, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("same", [0.5, 0.9])
def test_the_first_learner_does_not_go_on_under_the_masks_of_the_second(backend: str, same: float) -> None:
    """Its optimizer would move weights that are another's, or that are none."""
    first = made(sparsity.Static(0.5), backend=backend)
    first.learn(blobs()[0])
    second = made(sparsity.Static(same, first_mask="random"), first.model, backend=backend)
    with pytest.raises(ConfigError, match="another Learner was made of the model"):
        first.learn(blobs()[1])
    with pytest.raises(CheckpointError, match="another Learner was made of the model"):
        first.checkpoint_state()
    assert first.evaluate().class_il == second.evaluate(blobs()[:1]).class_il
    copy.deepcopy(second).learn(blobs()[0])
    second.learn(blobs()[0])


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    first = made(sparsity.Static(0.5))
    first.learn(blobs()[0])
    made(sparsity.Static(0.5), copy.deepcopy(first.model)).learn(blobs()[0])
    first.learn(blobs()[1])


@needs_native
def test_other_masks_out_of_a_state_dict_are_refused_once_the_optimizer_has_a_state() -> None:
    sparsifier = sparsity.SparCL(0.5, p_intra=0.1, p_inter=0.1)
    learner, (one, two, three) = made(sparsifier, epochs=8, backend="native"), blobs(3)
    learner.learn(one)
    kept = copy.deepcopy(learner.model.state_dict())
    learner.model.load_state_dict(kept)  # the masks that it has
    learner.learn(two)
    learner.model.load_state_dict(kept)
    with pytest.raises(ConfigError, match="other active weights by load_state_dict"):
        learner.learn(three)
    other = made(sparsity.SparCL(0.5), backend="native")
    other.model.load_state_dict(kept)  # nothing is kept of its weights yet
    other.learn(one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_has_moved_on_is_not_gone_back_to(backend: str) -> None:
    learner = made(sparsity.Static(0.5), backend=backend)
    learner.learn(blobs()[0])
    state = learner.checkpoint_state()
    kept = copy.deepcopy(state)
    learner.learn(blobs()[1])
    with pytest.raises(CheckpointError, match=r"copy\.deepcopy"):
        learner.restore(state)
    learner.restore(kept)
    assert learner.learned == 1


def test_a_copy_inside_averaged_is_refused() -> None:
    learner = made(average=0.2)
    learner.learn(blobs()[0])
    with learner.averaged(), pytest.raises(ConfigError, match="leave `averaged` first"):
        copy.deepcopy(learner)
    copy.deepcopy(learner).learn(blobs()[1])
