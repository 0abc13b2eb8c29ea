"""`sparcl export`: without this package, and in ONNX Runtime, a network answers as the run was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparcl import streams
from sparcl.checkpoint import disk
from sparcl.errors import ConfigError
from sparcl.main import _main
from sparcl.run import export
from sparcl.run.answering import Answering

MODELS = {"convnet": 8, "resnet18": 4, "mlp": 16}

ALONE = """
import sys
sys.modules["sparcl"] = None  # no import of it succeeds
import numpy as np, torch
from answers import CLASSES, load
x = torch.from_numpy(np.load("x.npy"))
np.save("logits.npy", load()(x).detach().numpy())
print(ascii(CLASSES))
"""


def made_run(out: Path, method: str, sparsifier: str = "dense", model: str = "convnet") -> Path:
    options = ["--model", model, "--width", str(MODELS[model]), "--epochs", "1", "--limit-per-class", "20"]
    command = ["run", "seq-digits", *options, "--threads", "1", "--method", method, "--sparsifier", sparsifier]
    assert _main([*command, "--class-order-seed", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    made = {model: made_run(folder / model, "er", "sparcl", model) for model in MODELS}
    return made | {method: made_run(folder / method, method) for method in ("icarl", "packnet", "lps")}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.cat([task.test.inputs[:4] for task in streams.load("seq-digits", limit_per_class=20)])


def expected(run: Path, pixels: torch.Tensor, task: int | None) -> torch.Tensor:
    """Probabilities [N, C] of the asked classes, by the method itself."""
    answering = Answering.of(run)
    probabilities = answering.predict(pixels, task).probabilities
    return probabilities if task is None else probabilities[:, list(answering.tasks[task - 1])]


CASES = [("convnet", None), ("resnet18", None), ("mlp", None), ("icarl", None), ("packnet", 2), ("lps", 5), ("mlp", 3)]


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_the_code_beside_the_weights_needs_no_sparcl(tmp_path, runs, pixels, kind, task) -> None:
    asked = [] if task is None else ["--task", str(task)]
    out = tmp_path / "answers.safetensors"
    assert _main(["export", str(runs[kind]), "--out", str(out), *asked]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.py", "answers.safetensors"]
    np.save(tmp_path / "x.npy", pixels.numpy())
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    torch.testing.assert_close(logits.softmax(1), expected(runs[kind], pixels, task), atol=1e-5, rtol=1e-4)
    known = json.loads((runs[kind] / "result.json").read_text(encoding="utf-8"))["data"]
    columns = range(10) if task is None else known["tasks"][task - 1]
    assert done.stdout.strip() == ascii([known["class_names"][k] for k in columns])
    assert _main(["export", str(runs[kind]), "--out", str(out), *asked]) == 0, "its own code is replaced"


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_onnx_runtime_answers_raw_pixels(tmp_path, runs, pixels, kind, task, capfd) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    asked = [] if task is None else ["--task", str(task)]
    out = tmp_path / "model.onnx"
    capfd.readouterr()
    assert _main(["export", str(runs[kind]), "--format", "onnx", "--out", str(out), *asked]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    assert told.out == f"written: {out}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(str(out))
    for some in (pixels, pixels[:1]):
        (logits,) = session.run(None, {"samples": some.numpy()})
        found = torch.from_numpy(logits).softmax(1)
        torch.testing.assert_close(found, expected(runs[kind], some, task), atol=1e-4, rtol=0)
    known = json.loads((runs[kind] / "result.json").read_text(encoding="utf-8"))["data"]
    columns = range(10) if task is None else known["tasks"][task - 1]
    names = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(names) == [known["class_names"][k] for k in columns]


def test_the_guide_says_how_to_load_it(tmp_path, runs, pixels) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "use.md").read_text(encoding="utf-8")
    assert _main(["export", str(runs["convnet"]), "--out", str(tmp_path / "model.safetensors")]) == 0
    np.save(tmp_path / "x.npy", pixels.numpy())
    first = "import sys, numpy, torch; sys.modules['sparcl'] = None; pixels = torch.from_numpy(numpy.load('x.npy'))\n"
    program = first + guide.split("```python\n")[1].split("```")[0] + "print(names)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(Answering.of(runs["convnet"]).predict(pixels).labels), done.stderr


def test_the_exported_weights_start_another_run(tmp_path, runs) -> None:
    out = tmp_path / "w.safetensors"
    assert _main(["export", str(runs["convnet"]), "--out", str(out)]) == 0
    own = load_file(runs["convnet"] / "model.safetensors")
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_file(out).items())
    command = ["run", "seq-digits", "--width", "8", "--epochs", "1", "--limit-per-class", "20", "--threads", "1"]
    assert _main([*command, "--init", str(out), "--out", str(tmp_path / "run")]) == 0


def test_what_onnx_runtime_answers_otherwise_is_not_written(tmp_path, runs, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    made = export._as_onnx

    def other(answering: Answering, exported: export.Exported) -> bytes:
        content = made(answering, exported)
        exported.shift += 0.1
        return content

    monkeypatch.setattr(export, "_as_onnx", other)
    assert _main(["export", str(runs["mlp"]), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 2
    assert "ONNX Runtime answers otherwise than PyTorch; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_are_no_code(tmp_path, runs) -> None:
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(runs["mlp"], copied)
    result = json.loads((copied / "result.json").read_text(encoding="utf-8"))
    hostile = ['"]; raise SystemExit(7)  #', "{shape}", '"""', "\u202e\n\\", *"abcdef"]
    result["data"]["class_names"] = hostile
    (copied / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert _main(["export", str(copied), "--out", str(tmp_path / "answers.safetensors")]) == 0
    program = "from answers import CLASSES; print(ascii(CLASSES))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ascii(hostile)), done.stderr


def test_bad_requests_are_one_line_and_leave_nothing(tmp_path, runs, capsys, monkeypatch) -> None:
    def refused(run: str, *arguments: str) -> str:
        capsys.readouterr()
        assert _main(["export", str(runs.get(run, tmp_path / run)), *arguments]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
        return told.err

    out = ["--out", str(tmp_path / "m.safetensors")]
    assert "unknown format 'tf'; allowed: torch, onnx" in refused("mlp", *out, "--format", "tf")
    assert "must end in .onnx" in refused("mlp", *out, "--format", "onnx")
    assert "must end in .safetensors" in refused("mlp", "--out", str(tmp_path / "m.pt"))
    assert ".onnx is of --format onnx" in refused("mlp", "--out", str(tmp_path / "m.onnx"))
    assert "answers for one task: add --task 1 to 5" in refused("packnet", *out)
    assert "task 9 is not known" in refused("mlp", *out, "--task", "9")
    assert "is no run directory" in refused("none", *out)
    assert "none.toml does not exist: name a run" in refused("none.toml", "--format", "device", *out)
    (tmp_path / "m.py").write_text("print('mine')", encoding="utf-8")
    assert "m.py would hold the code that loads m.safetensors, but is there already" in refused("mlp", *out)
    assert (tmp_path / "m.py").read_text(encoding="utf-8") == "print('mine')"
    inside = str(tmp_path / "m.py" / "m.safetensors")
    assert "cannot be written" in refused("mlp", "--out", inside)
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n))
    told = refused("mlp", "--out", str(tmp_path / "m.onnx"), "--format", "onnx")
    assert 'export to ONNX needs onnxscript: pip install "sparcl-edge[onnx]"' in told
    assert [path.name for path in tmp_path.iterdir()] == ["m.py"]


def test_files_that_do_not_fit_each_other_are_one_line(tmp_path, runs, capsys) -> None:
    import shutil

    for kind in ("icarl", "packnet"):
        copied = tmp_path / kind
        shutil.copytree(runs[kind], copied)
        own = load_file(copied / "answers.safetensors")
        for changed in ({}, {k: v[..., :1].contiguous() for k, v in own.items() if v.dim()}):
            save_file(changed, copied / "answers.safetensors")
            capsys.readouterr()
            command = ["export", str(copied), "--out", str(tmp_path / "m.safetensors"), "--task", "1"]
            assert _main(command) == 2, (kind, len(changed))
            told = capsys.readouterr().err
            assert ("do not fit each other" if changed else "is empty: it must hold the ") in told


def test_no_command_writes_over_what_a_run_has_left_or_what_it_reads(tmp_path, runs, monkeypatch, capsys) -> None:
    run, device = runs["mlp"], tmp_path / "m.sparcl"
    assert _main(["export", str(run), "--format", "device", "--out", str(device)]) == 0
    settings = tmp_path / "settings.toml"
    settings.write_text('stream = "seq-digits"\nwidth = 8\n', encoding="utf-8")
    (tmp_path / "link.safetensors").symlink_to(run / "model.safetensors")
    (tmp_path / "data.zip").write_bytes(b"photos")
    held = {path: path.read_bytes() for folder in (run, tmp_path) for path in folder.rglob("*") if path.is_file()}
    of_run = [path for path in held if path.is_relative_to(run)]
    assert {path.name for path in of_run} > {"model.safetensors", "result.json", "README.md", ".lock", "latest"}

    def refused(*command: object) -> None:
        capsys.readouterr()
        assert _main([*map(str, command)]) == 2, command
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "is a file of the run in" in told or "is the file that is read" in told, told

    for path in of_run:
        refused("export", device, "--format", "device", "--out", path)
        refused("pack", "seq-digits", "--out", path)
        refused("bench", "--json", path)
        if path.name != "report.html":
            refused("report", run, "--format", "html", "--out", path)
            refused("report", device, "--out", path)
    refused("export", runs["convnet"], "--out", run / "model.safetensors")
    refused("export", run, "--out", tmp_path / "link.safetensors")
    refused("export", settings, "--format", "device", "--out", settings)
    refused("report", device, "--out", device)
    refused("pack", "folder", "--data", tmp_path / "data.zip", "--out", tmp_path / "data.zip")
    monkeypatch.chdir(run)
    refused("export", ".", "--out", "model.safetensors")
    with pytest.raises(ConfigError, match=r"result\.json is a file of the run in"):
        disk.write_output(run / "result.json", [b""])  # as the calls of Python do
    assert all(path.read_bytes() == content for path, content in held.items())
    assert _main(["report", ".", "--format", "html", "--out", "report.html"]) == 0, "a page may be drawn again"
