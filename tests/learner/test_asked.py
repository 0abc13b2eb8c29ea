"""What the sparsifiers ask for never ends in a forward pass of one sample, which has no batch statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Net, blobs, make_learner
from typer.testing import CliRunner

from sparcl import DGM, Learner, SparCL, kernels
from sparcl.cli import app
from sparcl.methods import ER, METHODS, ICaRL
from sparcl.methods.method import Batch
from sparcl.sparsity import SNIP, RigL
from sparcl.streams import Samples, Stream, Task, from_arrays

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]


class Narrow(nn.Module):
    """BatchNorm over one value of each sample, so that one sample has no statistics."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 8, 6)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, classes)
        self.trained_on: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.trained_on.append(len(x))
        x = torch.relu(self.norm(self.stem(x)))
        logits: Tensor = self.classifier(torch.relu(self.norm2(self.conv(x))).flatten(1))
        return logits


SPARSIFIERS: list[Any] = [lambda: SparCL(0.5), DGM, lambda: SNIP(0.5), lambda: RigL(0.5, every=2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_a_buffer_of_one_sample_trains_under_every_sparsifier(backend: str, sparsifier: Any) -> None:
    model = Narrow()
    learner = Learner(model, ER(1), sparsifier(), backend=backend, batch_size=8, epochs=2)
    for task in blobs():
        learner.learn(task)
    assert len(learner.method.buffer) == 1
    assert min(model.trained_on) >= 2
    assert 9 in model.trained_on  # it is rehearsed, beside the task's batch


HOSTS = [name for name in METHODS if METHODS[name].masks == "moving" and name != "joint"]


def tiny(samples: int) -> Stream:
    """Two tasks of two classes with so many samples each: the least that is allowed is one for a class."""
    stream = blobs(per_class=samples)
    return from_arrays(
        torch.cat([task.train.inputs for task in stream]),
        torch.cat([task.train.labels for task in stream]),
        torch.cat([task.test.inputs for task in stream if task.test is not None]),
        torch.cat([task.test.labels for task in stream if task.test is not None]),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", HOSTS)
@pytest.mark.parametrize("samples", [1, 2])
def test_no_host_trains_on_a_single_sample_however_small_the_task_and_the_buffer(
    backend: str, method: str, samples: int
) -> None:
    options = {"buffer_size": 4 if method == "icarl" else 2} if method not in ("finetune", "lwf") else {}
    model = Narrow()
    learner = Learner(model, METHODS[method](**options), SparCL(0.5), backend=backend, batch_size=2, epochs=4)
    for task in tiny(samples):
        learner.learn(task)
    assert min(model.trained_on) >= 2
    assert learner.learned == 2


def test_icarl_with_one_class_a_task_and_the_smallest_buffer() -> None:
    stream, model = blobs(), Narrow(2)
    tasks = []
    for k in range(2):
        own = stream[0].train.labels == k
        tasks.append(Task(k, (k,), Samples(stream[0].train.inputs[own][:2], stream[0].train.labels[own][:2])))
    learner = Learner(model, ICaRL(2), SparCL(0.5), backend="reference", batch_size=2, epochs=4)
    for task in tasks:
        learner.learn(task)
    assert min(model.trained_on) >= 2


def test_the_command_line_trains_with_one_remembered_sample(tmp_path: Path) -> None:
    arguments = "run seq-digits --method er --buffer-size 1 --model resnet18 --width 8 --limit-per-class 4 --epochs 1"
    for backend in ("reference", *(["native"] if kernels.available() else [])):
        out = str(tmp_path / backend)
        done = CliRunner().invoke(app, [*arguments.split(), "--batch-size", "4", "--backend", backend, "--out", out])
        assert done.exit_code == 0, done.output


def test_what_a_model_without_batch_statistics_ranks_on_is_two_samples_too() -> None:
    """One rule for all: whether L(M) counts depends on the buffer and not on the model."""
    told: list[str] = []
    sparsifier = DGM(0.2, ranking="fresh")
    learner = make_learner(method=ER(1), sparsifier=sparsifier, observers=[lambda event, _: told.append(event)])
    for task in blobs():
        learner.learn(task)
    assert told.count("importance.begin") == told.count("dgm.choose")  # L~(D_t) alone


def test_fresh_batches_are_of_samples_still_in_the_task_and_each_loss_is_asked_for_its_own() -> None:
    """What DDR has removed is not ranked by either, though a fresh batch is drawn from all of the task."""
    asked: list[tuple[list[int], bool]] = []
    remembered: list[Tensor | None] = []
    objectives = 0
    sparsifier = SparCL(0.5, samples=0.6, ranking="fresh")

    class Noting(ER):
        def task_importance_loss(self, batch: Batch) -> Tensor:
            asked.append((batch.ids.tolist(), bool(sparsifier.ddr.kept[batch.ids].all())))
            return super().task_importance_loss(batch)

        def replay_importance_loss(self) -> Tensor | None:
            remembered.append(super().replay_importance_loss())
            return remembered[-1]

        def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
            nonlocal objectives
            objectives += 1
            return super().loss(batch)

    learner = Learner(Net(), Noting(20), sparsifier, epochs=20, batch_size=8, backend="reference")
    for task in blobs():
        del asked[:], remembered[:]
        learner.learn(task)
        late = asked[-1][0]
        assert sparsifier.ddr.removed == 24
        assert len(late) == len(set(late)) == 8  # full, of the 16 samples left
        assert all(kept for _, kept in asked)
        assert len([loss for loss in remembered if loss is not None]) > 0.5 * len(asked)
    assert objectives == learner.steps  # the whole objective is for training
