"""A model, method, sparsifier, stream, optimizer and augmentation of the user's own, named on the command line."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_parts import CODE
from own_parts import mine as mine

from sparcl import Learner, methods, nn, sparsity, streams
from sparcl.errors import ConfigError
from sparcl.main import _main
from sparcl.run import effect, optimizers
from sparcl.run.experiment import Experiment
from sparcl.run.toml import read_toml

QUICK = ["--limit-per-class", "20", "--epochs", "1", "--threads", "1", "--backend", "reference"]
OWN = [
    *("run", "mine:digits", "--method", "mine:Mine", "--option", "times=2", "--sparsifier", "mine:Hubs"),
    *("--sparsifier-option", "fraction=0.2", "--model", "mine:make", "--width", "4", "--optimizer", "mine:rms"),
    *("--lr-schedule", "mine:falling", "--augment", "crop+mine:roll", "--buffer-size", "30", *QUICK),
]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expecting a refusal; the one line it printed."""
    assert _main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("mine")
def test_a_run_of_own_parts_is_recorded_used_and_resumed_to_the_same_bits(capsys):
    assert _main([*OWN, "--out", "whole"]) == 0
    own = sys.modules["mine"]
    assert (30, 2, 1.0) in own.made, "the method got its buffer and a whole number"
    assert (0.9, 0.2) in own.made
    settings = read_toml(Path("whole/config.toml"))
    named = {"stream": "mine:digits", "method": "mine:Mine", "sparsifier": "mine:Hubs", "model": "mine:make"}
    assert settings.items() >= {**named, "optimizer": "mine:rms", "augment": ["crop", "mine:roll"]}.items()
    result = json.loads(Path("whole/result.json").read_text())
    assert (result["benchmark"], result["method"], result["sparsifier"]) == ("mine:digits", "mine:Mine", "mine:Hubs")
    assert len(result["accuracy_matrix"]["class_il"]) == 2
    assert result["data"]["augment"] == ["crop", "roll"]

    class DiedError(Exception):
        pass

    real = Learner._step

    def limited(self: Learner, position: object) -> None:
        if self.steps == 5:
            raise DiedError
        real(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_step", limited)
        with pytest.raises(DiedError):
            _main([*OWN, "--checkpoint-every", "2", "--out", "killed"])
    assert Path("killed/checkpoint/latest").read_text() == "step-4\n"
    assert "lr_schedule is None here" in refused(
        capsys, *[w for w in OWN if w != "--lr-schedule" and w != "mine:falling"], "--out", "killed", "--resume"
    )
    assert _main([*OWN, "--out", "killed", "--resume"]) == 0
    assert _main(["run", "--config", "whole/config.toml", "--out", "again"]) == 0
    for other in ("killed", "again"):
        for file in ("model.safetensors", "config.toml"):
            assert Path(other, file).read_bytes() == Path("whole", file).read_bytes(), (other, file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an own model and method, and the module beside it."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [p for p in sys.path if p])
        (folder / "mine.py").write_text(CODE)
        out = ["--sparsifier", "dense", "--model", "mine:make", "--method", "mine:Mine", *QUICK, "--out", "run"]
        assert _main(["run", "seq-digits", "--width", "4", *out]) == 0
        del sys.modules["mine"]
    (folder / "mine.py").unlink()
    np.save(folder / "x.npy", streams.seq_digits()[0].test.inputs[:3].numpy())
    return folder / "run"


@pytest.mark.usefixtures("mine")
def test_predict_export_and_report_work_on_it(finished, capsys):
    capsys.readouterr()
    assert _main(["predict", str(finished), str(finished.parent / "x.npy"), "--format", "json"]) == 0
    best = [row["answers"][0] for row in json.loads(capsys.readouterr().out)]
    assert _main(["export", str(finished), "--out", "exported.safetensors"]) == 0
    exported = importlib.import_module("exported")
    del sys.modules["exported"]
    pixels = torch.from_numpy(np.load(finished.parent / "x.npy"))
    with torch.no_grad():
        probabilities = exported.load()(pixels).softmax(dim=1)
    assert [exported.CLASSES[k] for k in probabilities.argmax(1)] == [b["class"] for b in best]
    assert probabilities.max(1).values.tolist() == pytest.approx([b["probability"] for b in best], abs=1e-5)
    assert "needs torch and safetensors and mine, your own, nothing else" in Path("exported.py").read_text()
    assert _main(["report", str(finished), "--format", "csv"]) == 0
    assert "mine:Mine" in capsys.readouterr().out
    assert _main(["watch", str(finished)]) == 0
    assert "method Mine is your own" in refused(capsys, "export", str(finished), "--format", "device", "--out", "m")


def test_where_the_module_is_missing_one_line_says_where_it_was_looked_for(tmp_path, finished, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    said = refused(capsys, "predict", str(finished), str(finished.parent / "x.npy"))
    assert f"there is no module mine, neither in the current directory ({tmp_path}) nor installed" in said
    assert _main(["report", str(finished), "--format", "csv"]) == 0, "records are read without it"


def test_nothing_that_lies_in_a_run_directory_is_executed(tmp_path, finished, capsys, monkeypatch):
    copied = Path(shutil.copytree(finished, tmp_path / "theirs"))
    (copied / "mine.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(copied)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert "nothing is executed" in refused(capsys, "predict", ".", str(finished.parent / "x.npy"))
    assert "mine" not in sys.modules


@pytest.mark.usefixtures("mine")
def test_the_installed_command_finds_the_current_directory():
    script = Path(sys.executable).with_name("sparcl")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "sparcl"]
    command += ["run", "mine:rows", "--method", "mine:Plain", "--epochs", "1", "--width", "8", "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    settings = read_toml(Path("run/config.toml"))
    assert (settings["model"], settings["lr"], settings["epochs"]) == ("auto", 0.03, 1)
    assert "augment" not in settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine_absent:digits"], "there is no module mine_absent"),
        (["mine:absent"], "mine has no absent; it has: make, ten"),
        (["mine:number"], "mine:number is a int: a class or a function is needed"),
        (["mine:nothing"], "gives a NoneType; a sparcl.streams.Stream is needed"),
        (["mine:broken"], "stream mine:broken fails: ValueError: it is broken"),
        (["mine:per_task"], "one sparcl.streams.Transform, the same for all"),
        (["mine:digits:x"], "package.module:name"),
        (["mine_broken:x"], "the import of mine_broken fails: ModuleNotFoundError"),
        (["mine_raises:x"], "the import of mine_raises fails: ZeroDivisionError: division by zero"),
        (["mine:digits", "--resize", "9"], "stream mine:digits takes no resize"),
        (["mine:digits", "--data", "x"], "stream mine:digits takes no data"),
        (["seq-digits", "--model", "mine:absent"], "mine has no absent"),
        (["seq-digits", "--model", "mine:number"], "is a int"),
        (["seq-digits", "--model", "mine:nothing"], "gives a NoneType; an nn.Module is needed"),
        (
            ["seq-digits", "--model", "mine:broken"],
            "model mine:broken fails (called with classes, input_shape): ValueError",
        ),
        (["seq-digits", "--model", "mine:ten", "--width", "4"], "takes no width"),
        (["mine:rows", "--model", "mine:make"], "model mine:make fails"),
        (["mine:rows", "--model", "mine:ten"], "model mine:ten fails: RuntimeError"),
        (["seq-digits", "--method", "mine:make"], "a subclass of sparcl.methods.method.Method is needed"),
        (["seq-digits", "--method", "mine:Nameless"], "has no name"),
        (["seq-digits", "--method", "mine:Plain", "--buffer-size", "9"], "no buffer"),
        (
            ["seq-digits", "--method", "mine:Mine", "--option", "depth=1"],
            "has no option 'depth'; allowed: times, weight",
        ),
        (["seq-digits", "--method", "mine:Mine", "--option", "times=1.5"], "use a whole number"),
        (["seq-digits", "--method", "mine:Mine", "--preset", "sparcl-script"], "no values for method 'mine:Mine'"),
        (["seq-digits", "--method", "mine:Mine", "--single-head"], "no single head"),
        (["seq-digits", "--sparsifier", "mine:Mine"], "a subclass of sparcl.sparsity.sparsifier.Sparsifier is needed"),
        (["seq-digits", "--sparsifier", "mine:Hubs", "--pattern", "block"], "takes no pattern"),
        (["seq-digits", "--sparsifier", "mine:Hubs", "--prunable", "3"], "takes no prunable"),
        (["seq-digits", "--sparsifier", "mine:Hubs", "--sparsifier-option", "depth=1"], "takes no depth"),
        (["seq-digits", "--sparsifier", "mine:Hubs", "--sparsifier-option", "sparsity=1"], "a setting: --sparsity"),
        (["seq-digits", "--sparsifier-option", "fraction=1"], "go with a sparsifier of your own"),
        (["seq-digits", "--sparsifier-option", "fraction"], "--sparsifier-option 'fraction' is not NAME=NUMBER"),
        (["seq-digits", "--optimizer", "mine:nothing"], "gives a NoneType; a torch.optim one is needed"),
        (["seq-digits", "--optimizer", "mine:rms", "--momentum", "0.5"], "takes no momentum"),
        (["seq-digits", "--optimizer", "mine:broken"], "optimizer mine:broken fails: ValueError"),
        (["seq-digits", "--optimizer", "adagrad"], "allowed: sgd, adam, adamw, package.module:name"),
        (["seq-digits", "--optimizer", "adam", "--momentum", "0.5"], "momentum goes with optimizer sgd"),
        (
            ["seq-digits", "--optimizer", "adam", "--optimizer-option", "beta=0.5"],
            "allowed: beta1, beta2, eps, amsgrad",
        ),
        (
            ["seq-digits", "--optimizer", "adam", "--optimizer-option", "beta2=1.5"],
            "beta2 1.5 is not allowed; use 0 to",
        ),
        (["seq-digits", "--optimizer", "adam", "--optimizer-option", "beta1=-1"], "beta1 -1 is not allowed; use 0 to"),
        (
            ["seq-digits", "--optimizer", "adamw", "--optimizer-option", "eps=-1"],
            "eps -1 is not allowed; use 0 or more",
        ),
        *((["seq-digits", "--momentum", m], "is not allowed; use 0 to less than 1") for m in ("-1", "1", "nan", "inf")),
        (["seq-digits", "--optimizer-option", "nesterov=1"], "Nesterov momentum requires"),
        (["seq-digits", "--optimizer-option", "nesterov=0.5"], "use 0 or 1"),
        (["seq-digits", "--augment", "mirror"], "allowed: none, crop, flip"),
        (["seq-digits", "--augment", "none", "--augment", "flip"], "none+flip is not allowed"),
        (["seq-digits", "--augment", "crop+crop"], "each once"),
        (["seq-digits", "--augment", "mine:shrink"], "augmentation shrink makes torch.uint8 [1, 1, 7, 8] of"),
        (["seq-digits", "--augment", "mine:broken"], "augmentation broken fails: ValueError"),
        (["mine:rows", "--augment", "flip"], "crop and flip are for images"),
        (["seq-digits", "--lr-schedule", "linear"], "use constant, cosine, step(SHARE, ...)"),
        (["seq-digits", "--lr-schedule", "mine:nothing"], "the learning-rate schedule gives None"),
        (["seq-digits", "--lr-schedule", "mine:broken"], "lr-schedule mine:broken fails: ValueError"),
        (["seq-digits", "--warmup", "1"], "0 to less than 1"),
        (["seq-digits", "--clip-grad-norm", "0"], "use a number above 0"),
        (["seq-digits", "--clip-grad-norm", "inf"], "use a number above 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(mine, capsys, arguments, says):
    before = sorted(mine.rglob("*"))
    assert says in refused(capsys, "run", *arguments, "--out", "run")
    assert [p for p in sorted(mine.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_sweep_over_own_methods_is_checked_before_it_starts(mine, capsys):
    Path("sweep.toml").write_text('[base]\nstream = "seq-digits"\n[grid]\nmethod = ["er", "mine:Absent"]\n')
    assert "run method=mine:Absent: method mine:Absent: mine has no Absent" in refused(capsys, "sweep", "sweep.toml")
    Path("sweep.toml").write_text(
        '[base]\nstream = "mine:rows"\nmodel = "mlp"\nwidth = 8\nepochs = 1\n[grid]\nmethod = ["mine:Plain"]\n'
    )
    assert _main(["sweep", "sweep.toml", "--out", "runs"]) == 0
    assert (mine / "runs" / "mine.rows-mine.Plain-sparcl-0.9-seed0" / "result.json").exists()
    assert (
        "1 finished"
        in (capsys.readouterr(), _main(["sweep", "sweep.toml", "--out", "runs"]), capsys.readouterr())[2].out
    )


@pytest.mark.usefixtures("mine")
def test_the_library_takes_the_same_names():
    assert methods.find("mine:Mine").name == "own-er"
    assert sparsity.find("mine:Hubs").name == "hubs"
    assert nn.build("mine:make", 3, (1, 8, 8), 5)[0].weight.shape == (5, 1, 3, 3)
    assert streams.load("mine:digits", classes_per_task=2)[0].classes == (0, 1)
    assert (
        streams.load("seq-digits", augment="mine:roll")[0].transform.augment(torch.zeros(1, 2), torch.Generator()).shape
    )


def test_the_model_of_an_own_stream_goes_by_its_samples():
    assert type(nn.build("auto", 3, (1, 8, 8), 4)).__name__ == "ResNet"
    assert type(nn.build("auto", 3, (6,))).__name__ == "MLP"


def test_defaults_of_the_optimizers_are_recorded_and_plain_sgd_is_named_by_nothing():
    adam = Experiment("seq-digits", optimizer="adamw").resolve()
    assert (adam.lr, adam.weight_decay) == (0.001, 0.01)
    assert (Experiment("seq-digits", optimizer="adam", lr=0.5).resolve().lr) == 0.5
    usual = Experiment("seq-digits").resolve()
    spelled = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", "warmup": 0.0}
    assert Experiment("seq-digits", **spelled).resolve() == usual
    assert Experiment("seq-digits", augment=("flip+crop",)).resolve().augment == ("flip", "crop")
    with pytest.raises(ConfigError, match="finite"):
        Experiment("seq-digits", optimizer="adam", optimizer_options={"eps": float("nan")})


def test_a_run_that_began_with_dampening_before_it_was_refused_goes_on():
    began = Experiment("seq-digits", optimizer_options={"dampening": 0.5}).resolve()
    made = optimizers.maker(began)([torch.nn.Parameter(torch.zeros(1))])
    assert made.param_groups[0]["dampening"] == 0
    with pytest.raises(ConfigError, match="goes with --momentum"):
        effect.check(began)


def test_an_own_stream_may_have_no_test_samples_one_sample_and_any_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "untested.py").write_text(UNTESTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["run", "untested:stream", "--model", "untested:Net", "--epochs", "1", "--threads", "1"]
    for name, more in (("all", []), ("one", ["--limit-per-class", "1", "--classes-per-task", "1"])):
        assert _main([*words, *more, "--out", str(tmp_path / name)]) == 0
        assert "there are no test samples" in capsys.readouterr().out
        assert json.loads((tmp_path / name / "result.json").read_text())["class_il"] is None
    words[1] = "untested:half"
    assert _main([*words, "--out", str(tmp_path / "half")]) == 2
    assert "either all of its tasks have test samples, or none" in capsys.readouterr().err


UNTESTED = """
from dataclasses import replace
import numpy as np
from torch import nn
from sparcl import streams

def stream(**settings):
    y = np.arange(24) % 4
    return streams.from_arrays(np.float32(y[:, None] + np.arange(6)), y, **settings)

def half():
    made = stream()
    return replace(made, tasks=(made[0], replace(made[1], test=made[1].train)))

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes))
"""
