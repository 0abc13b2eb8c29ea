"""A device's file on the desk, as it is: predict, export and report take it; and a fresh model goes to a device."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from forwards import Idle

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.main import _main
from sparcl.methods import ER, LwF
from sparcl.run.export_device import export_device
from sparcl.sparsity import Sparsifier
from sparcl.streams import seq_digits

ALONE = """
import sys
sys.modules["sparcl"] = None  # no import of it succeeds
import numpy as np, torch
from answers import CLASSES, load
np.save("logits.npy", load()(torch.from_numpy(np.load("x.npy"))).detach().numpy())
print(ascii(CLASSES))
"""


def sparcl(*arguments: object) -> int:
    return _main([str(a) for a in arguments])


def of_device(
    program: Path, folder: Path, model: str = "own", sparsifier: str = "static", average: float | None = None
) -> tuple[Path, torch.Tensor]:
    """A file that learned two classes more on a device, and the test samples of all tasks."""
    stream = made.stream()
    learner = made.learner(model, made.SPARSIFIERS[sparsifier](), ER(12), average=average)
    learner.learn(stream[0])
    file = made.export(learner, folder / "m.sparcl", stream[0])
    made.packed(stream[2], folder / "s.sparcl")
    assert made.run(program, "learn", file, folder / "s.sparcl", "--epochs", 2).returncode == 0
    return file, torch.cat([task.test.inputs for task in stream])


def logits_of(program: Path, file: Path, pixels: torch.Tensor) -> torch.Tensor:
    """What the program says of them."""
    folder = file.parent / "pgm"
    for i, image in enumerate(pixels):
        (place := folder / f"{i:03}.ppm").parent.mkdir(exist_ok=True)
        place.write_bytes(b"P6 8 8 255\n" + image.permute(1, 2, 0).contiguous().numpy().tobytes())
    done = made.run(program, "predict", file, folder, "--logits")
    assert (done.returncode, done.stderr) == (0, "")
    return torch.tensor([[float(v) for v in line.split()[1:]] for line in done.stdout.splitlines()])


@pytest.mark.parametrize(
    ("model", "sparsifier", "average"),
    [
        ("own", "static", None),
        ("before", "static", None),
        ("convnet", "blocks", 0.3),
        ("resnet", "static", 0.3),
        ("mlp", "dense", None),
    ],
)
def test_predict_and_export_answer_as_the_device(
    program: Path,
    tmp_path: Path,
    model: str,
    sparsifier: str,
    average: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, pixels = of_device(program, tmp_path, model, sparsifier, average)
    np.save(tmp_path / "x.npy", pixels.numpy())
    logits, names = logits_of(program, file, pixels), model_file.read(file).classes
    assert len(names) == 6
    capsys.readouterr()
    assert sparcl("predict", file, tmp_path / "x.npy", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["answers"][0]["class"] for row in rows] == [names[k] for k in logits.argmax(1).tolist()]
    told = torch.tensor([row["answers"][0]["probability"] for row in rows])
    torch.testing.assert_close(told, logits.softmax(1).max(1).values, atol=1e-4, rtol=1e-4)

    assert sparcl("export", file, "--out", tmp_path / "answers.safetensors") == 0
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ascii(names)), done.stderr
    alone = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    torch.testing.assert_close(alone, logits, atol=1e-4 * float(logits.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("average", [None, 0.3])
def test_layers_that_are_never_called_stay_as_they_are(
    program: Path, tmp_path: Path, average: float | None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device left the average of their statistics out, and nobody could read the file that it wrote."""
    monkeypatch.setitem(made.MODELS, "idle", Idle)
    file, pixels = of_device(program, tmp_path, "idle", average=average)
    logits = logits_of(program, file, pixels)
    answers = model_file.read(file).state
    averages = answers["learner"]["average"] if average else answers["model"]
    assert averages["aside.1.running_var"].eq(1).all()
    np.save(tmp_path / "x.npy", pixels.numpy())
    capsys.readouterr()
    assert sparcl("predict", file, tmp_path / "x.npy", "--format", "json") == 0
    told = torch.tensor([row["answers"][0]["probability"] for row in json.loads(capsys.readouterr().out)])
    torch.testing.assert_close(told, logits.softmax(1).max(1).values, atol=1e-4, rtol=1e-4)
    assert sparcl("export", file, "--out", tmp_path / "answers.safetensors") == 0
    assert sparcl("report", file) == 0


def test_the_tasks_of_the_device_can_be_asked_for(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, pixels = of_device(program, tmp_path, "convnet")
    assert [task["samples"] for task in model_file.read(file).device["tasks"]] == [48]
    np.save(tmp_path / "x.npy", pixels.numpy())
    capsys.readouterr()
    assert sparcl("predict", file, tmp_path / "x.npy", "--task", 2, "--format", "csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["class"] for row in rows} <= set(made.CLASSES)
    assert sparcl("predict", file, tmp_path / "x.npy", "--task", 3) == 2
    assert "task 3 is not known; allowed are 1 to 2" in capsys.readouterr().err


def test_onnx_answers_as_the_device(program: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file, pixels = of_device(program, tmp_path, "resnet")
    assert sparcl("export", file, "--format", "onnx", "--out", tmp_path / "m.onnx") == 0
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"samples": pixels.numpy()})
    logits = logits_of(program, file, pixels)
    torch.testing.assert_close(torch.from_numpy(given), logits, atol=1e-4 * float(logits.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_report_says_what_is_in_the_file(
    program: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = of_device(program, tmp_path, "convnet")
    learner = Learner.load(file, backend="reference")
    capsys.readouterr()
    assert sparcl("report", file, "--format", form) == 0
    told = capsys.readouterr().out.replace("\\", "")
    buffer = learner.method.buffer
    assert buffer is not None
    wanted = [file, "er", 6, 2, 1, learner.steps, 12, buffer.inputs.nbytes + buffer.labels.nbytes]
    for value in wanted:
        assert str(value) in told
    if form == "csv":
        (row,) = csv.DictReader(told.splitlines())
        unused = sum(math.prod(layer.shape) - layer.index.numel() for layer in learner.sparsifier.layers)
        active = sum(p.numel() for p in learner.model.parameters()) - unused
        assert (row["weights"], row["tasks"], row["on_device"]) == (str(active), "2", "1")
    assert sparcl("report", file, "--format", "markdown", "--out", tmp_path / "r.md") == 0
    assert "| er |" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_what_the_desk_cannot_do_is_one_line(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = of_device(program, tmp_path, "convnet")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.uint8))
    task = made.stream()[0]
    other = made.learner(method=LwF(), sparsifier=Sparsifier())
    shape, names = made.SHAPE, made.CLASSES[:4]
    export_device(other, tmp_path / "lwf", transform=task.transform, input_shape=shape, classes=names)
    whole = file.read_bytes()
    (tmp_path / "bad").write_bytes(whole[:-1])
    for arguments, said in [
        (("report", file, tmp_path), "is a file, the rest are runs: report one or the other"),
        (("report", file, "--format", "html", "--out", "x"), "format 'html' shows runs; of a device's file there are"),
        (("report", tmp_path / "x.npy"), "no sparcl model"),
        (("predict", tmp_path / "bad", tmp_path / "x.npy"), "is damaged"),
        (("export", file, "--format", "device", "--out", "x"), "is a device's file already"),
        (("export", tmp_path / "none", "--out", "x.safetensors"), "is no run directory"),
    ]:
        capsys.readouterr()
        assert sparcl(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert file.read_bytes() == whole


def changed(file: Path, change) -> None:
    model = model_file.read(file)
    change(model)
    model_file.write(file, model)


def test_a_hostile_file_is_refused_on_the_desk(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pixels = of_device(program, tmp_path, "convnet", average=0.3)
    np.save(tmp_path / "x.npy", pixels.numpy())
    whole = file.read_bytes()
    for change in (
        lambda m: m.graph[0].update(op="exec"),
        lambda m: m.graph[0].update(name="forward"),
        lambda m: m.graph[0].update(name="."),
        lambda m: m.graph[0].update(input=1),
        lambda m: m.graph[0].update(weight=[1 << 20, 1 << 20, 1, 1]),
        lambda m: m.graph[0].update(stride=[0, 1]),
        lambda m: m.graph[0].update(bias=1),
        lambda m: m.graph[1].update(eps="x"),
        lambda m: m.graph[1].update(eps=float("1e300")),
        lambda m: m.graph.pop(),
        lambda m: m.graph.clear(),
        lambda m: m.classes.append("more"),
        lambda m: m.input_shape.__setitem__(0, 1 << 40),
        lambda m: m.transform.update(std=[0.0]),
        lambda m: m.state["learner"]["classes"].update(of_tasks=[[0, 1 << 20]]),
        lambda m: m.device.update(method={"name": "x"}),
        lambda m: m.device.pop("method"),
        lambda m: m.state["layers"]["3"]["index"].fill_(-1),
        lambda m: m.state["layers"].pop("3"),
        lambda m: m.state["learner"].pop("classes"),
        lambda m: m.state["learner"].pop("average"),
        lambda m: m.state["learner"].update(average=[0.0]),
        lambda m: m.state["learner"]["average"].update({"1.running_mean": torch.zeros(3)}),
        lambda m: m.state["optimizer"]["state"].update({"3.weight": {"average": torch.zeros(3)}}),
        lambda m: m.state["optimizer"]["state"].update({"3.weight": 1}),
        lambda m: m.state["optimizer"].update(state=1),
    ):
        file.write_bytes(whole)
        changed(file, change)
        for command in (("predict", file, tmp_path / "x.npy"), ("export", file, "--out", tmp_path / "a.safetensors")):
            capsys.readouterr()
            assert sparcl(*command) == 2
            told = capsys.readouterr()
            assert (told.out, told.err.count("\n")) == ("", 1)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_fresh_model_goes_to_a_device(program: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh.toml").write_text('stream = "seq-digits"\nmethod = "er"\nwidth = 8\nsparsifier = "static"\n')
    file = tmp_path / "m.sparcl"
    assert sparcl("export", tmp_path / "fresh.toml", "--format", "device", "--out", file) == 0
    learner = Learner.load(file)
    assert (learner.learned, learner.steps) == (0, 0)
    assert sparcl("pack", "seq-digits", "--task", 1, "--out", tmp_path / "s.sparcl") == 0
    assert made.run(program, "learn", file, tmp_path / "s.sparcl", "--epochs", 15).returncode == 0
    accuracy = Learner.load(file).evaluate([seq_digits()[0]]).class_il
    assert accuracy is not None
    assert accuracy[0] > 80
