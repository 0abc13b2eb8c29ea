"""Given the same file and samples, the program computes what Python computes: logits, loss, gradients, statistics."""

from __future__ import annotations

from pathlib import Path

import made
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sparcl import Learner, kernels
from sparcl.checkpoint import model_file, tree
from sparcl.errors import CheckpointError
from sparcl.run.export_device import import_device

CASES = [(m, "static") for m in made.MODELS] + [("resnet", "dense"), ("resnet", "blocks"), ("convnet", "blocks")]


def near(ours: torch.Tensor, theirs: torch.Tensor, scale: float = 0.0) -> None:
    assert (ours.double() - theirs.double()).abs().max() <= 1e-4 * max(scale, float(theirs.abs().max()))


@pytest.mark.parametrize(("model", "sparsifier"), CASES)
def test_logits_loss_and_gradients(program: Path, tmp_path: Path, model: str, sparsifier: str) -> None:
    task, *_ = made.stream()
    learner = made.learner(model, made.SPARSIFIERS[sparsifier]())
    learner.learn(task)
    file = made.export(learner, tmp_path / "m.sparcl", task)
    samples = made.packed(task, tmp_path / "s.sparcl")

    done = made.run(program, "predict", file, samples, "--logits", "--threads", 2)
    assert (done.returncode, done.stderr) == (0, "")
    said = torch.tensor([[float(v) for v in line.split()[1:]] for line in done.stdout.splitlines()])
    inputs, labels = task.transform.test(task.train.inputs), task.train.labels
    learner.model.eval()
    near(said, learner.model(inputs).detach())

    done = made.run(program, "gradients", file, samples, tmp_path / "g.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    given = load_file(tmp_path / "g.safetensors")
    learner.model.train()
    loss = F.cross_entropy(learner.model(inputs), labels)
    learner.optimizer.zero_grad()
    loss.backward()
    near(given.pop("loss"), loss.detach())
    sparse = {f"{layer.name}.weight": layer for layer in learner.sparsifier.layers}
    wanted = {n: sparse[n].gather(p.grad) if n in sparse else p.grad for n, p in learner.model.named_parameters()}
    wanted |= {n: b for n, b in learner.model.named_buffers() if "running" in n}
    assert set(given) == set(wanted)
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for name, want in wanted.items():
        near(given[name], want.reshape(-1), 0.1 * largest if name.endswith("bias") else 0.0)


def test_accuracy_is_python_s_and_threads_change_no_bit(program: Path, tmp_path: Path) -> None:
    task, *_ = made.stream()
    learner = made.learner()
    learner.learn(task)
    file = made.export(learner, tmp_path / "m.sparcl", task)
    samples = made.packed(task, tmp_path / "s.sparcl", train=False)
    one, two = (made.run(program, "evaluate", file, samples, "--threads", n) for n in (1, 3))
    assert one.stdout == two.stdout
    accuracy = float(one.stdout.splitlines()[-1].split()[1])
    assert accuracy == pytest.approx(learner.evaluate().class_il[0], abs=1e-3)


@pytest.mark.parametrize(
    "backend",
    ["reference", pytest.param("native", marks=pytest.mark.skipif(not kernels.available(), reason="no engine"))],
)
def test_a_file_is_a_learner_to_the_last_bit(tmp_path: Path, backend: str) -> None:
    first, second, _ = made.stream()
    learner = made.learner("resnet", made.SparCL(0.6), backend=backend)
    learner.learn(first)
    file = made.export(learner, tmp_path / "m.sparcl", first)
    again = import_device(file, backend="reference")
    assert tree.difference(learner.checkpoint_state(), again.checkpoint_state()) is None
    again.learn(second)
    assert again.learned == 2
    with pytest.raises(CheckpointError, match="no sparcl model"):
        Learner.load(made.packed(first, tmp_path / "s.sparcl"))


def test_the_file_says_its_checksum(tmp_path: Path) -> None:
    task, *_ = made.stream()
    file = made.export(made.learner(), tmp_path / "m.sparcl", task)
    whole = file.read_bytes()
    assert model_file.read(file).classes == list(made.CLASSES[:4])
    for damaged in (whole[:-1], whole[:100], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            model_file.read(file)
        assert "\n" not in str(error.value)
