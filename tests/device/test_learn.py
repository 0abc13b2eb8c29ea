"""`sparcl-device learn`: new classes, where it stands after a kill, and the way back to Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made
import pytest
import torch

from sparcl import Learner
from sparcl.errors import CheckpointError
from sparcl.learner.budget import Budget
from sparcl.methods import DER, ER, DERpp, Finetune, Method
from sparcl.nn import build
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import Static
from sparcl.streams import Samples, Transform, seq_digits

METHODS = {"finetune": Finetune, "er": lambda: ER(12), "der": lambda: DER(12), "derpp": lambda: DERpp(12)}


def ready(tmp_path: Path, method: Method | None = None) -> tuple[Learner, Path]:
    first, *_ = made.stream()
    learner = made.learner(method=method)
    learner.learn(first)
    return learner, made.export(learner, tmp_path / "m.sparcl", first)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_task_is_learned_and_python_goes_on(program: Path, tmp_path: Path, method: str) -> None:
    _, second, third = made.stream()
    learner, file = ready(tmp_path, METHODS[method]())
    samples = made.packed(third, tmp_path / "s.sparcl")
    done = made.run(program, "learn", file, samples, "--epochs", 12, "--threads", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"learned 48 samples of 2 class(es) by {method}: 72 steps" in done.stdout
    after = made.run(program, "evaluate", file, samples).stdout.splitlines()[-1]
    assert float(after.split()[1]) > 75.0

    again = Learner.load(file)
    assert (again.learned, again.steps) == (2, learner.steps + 72)
    assert again.model[-1].out_features == 6
    masks = [(a.index, b.index) for a, b in zip(learner.sparsifier.layers, again.sparsifier.layers, strict=True)]
    assert all(torch.equal(a, b) for a, b in masks)
    if again.method.buffer is not None:
        assert again.method.buffer.seen == learner.method.buffer.seen + 72 * 8
        assert len(again.method.buffer.labels[: len(again.method.buffer)]) == 12
    again.learn(replace(second, index=2))
    assert again.learned == 3
    assert again.evaluate([replace(third, index=1)]).task_il[0] > 50


def test_a_step_is_python_s(program: Path, tmp_path: Path) -> None:
    """One step over all samples, nothing drawn: fine-tuning without augmentation, order and mask are no matter."""
    transform = Transform()
    first, second, _ = made.stream(transform=transform)
    learner = made.learner(method=Finetune())
    learner.settings["batch_size"] = learner.batch_size = len(second.train)
    learner.budget = Budget.of(1, None, None)
    learner.settings["budget"] = {"epochs": 1}
    learner.learn(first)
    file = made.export(learner, tmp_path / "m.sparcl", first)
    task = Samples(second.train.inputs, second.train.labels)
    pack(task, made.CLASSES[:4], tmp_path / "s.sparcl")
    assert made.run(program, "learn", file, tmp_path / "s.sparcl", "--steps", 1).returncode == 0
    learner.learn(second)
    ours, theirs = Learner.load(file).checkpoint_state(), learner.checkpoint_state()
    for name, value in theirs["model"].items():
        assert torch.allclose(ours["model"][name].double(), value.double(), rtol=1e-4, atol=1e-5), name
    for name, layer in theirs["layers"].items():
        assert torch.allclose(ours["layers"][name]["values"], layer["values"], rtol=1e-4, atol=1e-5), name


def test_a_file_that_stands_inside_a_task_goes_on_with_its_samples_alone(program: Path, tmp_path: Path) -> None:
    _, second, third = made.stream(per_class=200)
    _, file = ready(tmp_path)
    samples, others = made.packed(second, tmp_path / "s.sparcl"), made.packed(third, tmp_path / "o.sparcl")
    made.stopped_inside(program, file, samples, "--max-seconds", 60)
    with pytest.raises(CheckpointError, match="task 2 has other data"):
        Learner.load(file).learn(replace(third, index=1))
    done = made.run(program, "learn", file, others)
    assert (done.returncode, done.stdout) == (2, "")
    assert "stands inside a task of other samples" in done.stderr
    assert made.run(program, "learn", file, others, "--new-task", "--steps", 3).returncode == 0
    assert Learner.load(file).learned == 3


def test_under_seconds_a_task_that_is_left_has_its_pace_too(program: Path, tmp_path: Path) -> None:
    first, second, third = made.stream(per_class=200)
    learner = Learner(made.MODELS["convnet"](), DERpp(12), Static(0.6), seconds=0.2, batch_size=8, backend="reference")
    learner.learn(first)
    file = made.export(learner, tmp_path / "m.sparcl", first)
    samples, others = made.packed(second, tmp_path / "s.sparcl"), made.packed(third, tmp_path / "o.sparcl")
    made.stopped_inside(program, file, samples, "--max-seconds", 60)
    left = Learner.load(file).position
    assert left is not None
    assert made.run(program, "learn", file, others, "--new-task", "--max-seconds", 0.3).returncode == 0
    after = Learner.load(file)
    assert (after.learned, len(after.pace), after.pace[:1]) == (3, 3, learner.pace)
    assert after.pace[1] == left.pace + [left.done] * (200 - len(left.pace))
    assert after.pace[2][-1] == after.steps - learner.steps - left.done


def test_images_in_folders_are_learned(program: Path, tmp_path: Path) -> None:
    _, second, _ = made.stream()
    _, file = ready(tmp_path)
    folder = tmp_path / "images"
    for i, (image, label) in enumerate(zip(second.train.inputs, second.train.labels, strict=True)):
        (of_class := folder / made.CLASSES[int(label) + 2]).mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        (of_class / f"{i:03}.ppm").write_bytes(b"P6\n# a comment\n8 8\n255\n" + pixels)
    assert made.run(program, "learn", file, folder, "--epochs", 12).returncode == 0
    done = made.run(program, "predict", file, folder)
    lines = done.stdout.splitlines()
    assert sum(line.split()[0].split("/")[-2] in line.split()[1] for line in lines) > 40


@pytest.mark.slow
def test_digits_are_learned_as_well_as_in_python(program: Path, tmp_path: Path) -> None:
    stream, theirs, ours = seq_digits(), [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = build("convnet", 10, stream.input_shape, 16)
        learner = Learner(model, DERpp(200), Static(0.8), lr=0.05, epochs=10, batch_size=16, seed=seed)
        file, names = tmp_path / "digits.sparcl", stream.class_names
        transform = stream[0].transform
        export_device(learner, file, transform=transform, input_shape=stream.input_shape, classes=names)
        for task in stream:
            learner.learn(task)
            pack(task.train, names, tmp_path / "t.sparcl")
            assert made.run(program, "learn", file, tmp_path / "t.sparcl").returncode == 0
        theirs.append(sum(learner.evaluate().class_il) / len(stream))
        pack(stream.merged()[0].test, names, tmp_path / "t.sparcl")
        ours.append(
            float(made.run(program, "evaluate", file, tmp_path / "t.sparcl").stdout.splitlines()[-1].split()[1])
        )
    assert abs(sum(ours) - sum(theirs)) / 3 < 6, (ours, theirs)
