"""Steps and tasks of one sample: as good as any, except where a BatchNorm takes its statistics from the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toys import Net, blobs

from sparcl import DDR, Learner, SparCL, kernels, methods, streams
from sparcl.errors import ConfigError, DataError
from sparcl.nn import MLP

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]


def one(name: str, value: float) -> streams.Task:
    return streams.make_task(np.full((1, 6), value, np.float32), [name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [methods.Finetune, lambda: methods.ER(4), lambda: methods.DERpp(4)])
def test_tasks_of_one_sample_are_learned_and_answered(method: Any, backend: str) -> None:
    torch.manual_seed(0)
    sparsifier = SparCL(0.5, samples=0.0)
    learner = Learner(MLP(1, (6,), 16), method(), sparsifier, classes=(), epochs=20, backend=backend)
    for name, value in (("low", -2.0), ("high", 2.0)):
        before = [p.detach().clone() for p in learner.model.parameters()]
        learner.learn(one(name, value))
        assert any(
            not torch.equal(a, b) for a, b in zip(before[:-2], list(learner.model.parameters())[:-2], strict=True)
        )
    assert learner.steps == 40
    assert learner.predict(np.full((1, 6), 2.0, np.float32)).labels == ["high"]
    assert len(learner.predict(torch.zeros(1, 6))) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", [lambda: SparCL(0.5), DDR, lambda: None])
def test_a_batch_of_one_goes_through_all_samples(sparsifier: Any, backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((11, 6), dtype=np.float32)
    torch.manual_seed(0)
    made = sparsifier()
    if made is None and backend == "native":
        pytest.skip("nothing is pruned")
    kind = "reference" if isinstance(made, DDR) else backend
    learner = Learner(MLP(2, (6,), 16), methods.DERpp(4), made, batch_size=1, backend=kind)
    learner.learn(streams.from_arrays(x, np.arange(11) % 2)[0])
    assert 8 <= learner.steps <= 11 if made is not None else learner.steps == 11


def test_a_norm_is_named_that_one_sample_cannot_go_through() -> None:
    for label in ("batch size", "replay batch size"):
        with pytest.raises(ConfigError, match=rf"^{label} 1 is not allowed with layer norm1 \(BatchNorm2d\)"):
            Learner(Net(), methods.ER(4), **{label.replace(" ", "_"): 1})
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    learner = Learner(model, classes=())
    before = [p.detach().clone() for p in model[0].parameters()]
    with pytest.raises(DataError, match=r"task 1 has 1 training sample: layer 1 \(BatchNorm1d\) needs 2 or more"):
        learner.learn(one("low", 0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, model[0].parameters(), strict=True))
    learner.learn(streams.make_task(np.eye(2, 6, dtype=np.float32), ["low", "high"]))  # the next one is learned


def test_a_last_batch_of_one_is_left_out_as_ever() -> None:
    x = np.random.default_rng(0).standard_normal((9, 6), dtype=np.float32)
    learner = Learner(MLP(2, (6,), 16), batch_size=4)
    learner.learn(streams.from_arrays(x, np.arange(9) % 2)[0])
    assert learner.steps == 2


def test_a_batchnorm_that_is_named_to_be_frozen_takes_batches_of_one() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    learner = Learner(model, freeze="0,1", latents="int8", batch_size=1, replay_batch_size=1, method=methods.ER(4))
    learner.learn(blobs()[0])
    learner.observe(blobs()[1].train.inputs[0], 3)
    assert learner.observed == 1
    learner.evaluate()
    with pytest.raises(ConfigError, match=r"batch size 1 is not allowed with layer 1 \(BatchNorm2d\)"):
        Learner(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4)), batch_size=1)
