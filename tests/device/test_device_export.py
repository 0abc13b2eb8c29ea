"""From a run directory to a device and back, by the commands that docs/device.md names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made
import pytest
from forwards import Idle

from sparcl import Learner
from sparcl.errors import ConfigError
from sparcl.main import _main
from sparcl.methods import ER
from sparcl.nn import ConvNet
from sparcl.run.export_device import export_device
from sparcl.sparsity import Static
from sparcl.streams import Transform, seq_digits


def sparcl(*arguments: object) -> int:
    return _main([str(a) for a in arguments])


def test_a_run_goes_to_a_device_and_back(program: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "m.sparcl"
    small = ("--width", 8, "--epochs", 2, "--limit-per-class", 40, "--threads", 1, "--backend", "reference")
    assert sparcl("run", "seq-digits", "--out", run, *small) == 0
    assert sparcl("export", run, "--format", "device", "--out", file) == 0
    assert sparcl("pack", "seq-digits", "--split", "test", "--out", tmp_path / "test.sparcl") == 0
    assert sparcl("pack", "seq-digits", "--task", 2, "--out", tmp_path / "two.sparcl") == 0
    done = made.run(program, "evaluate", file, tmp_path / "test.sparcl")
    assert (done.returncode, done.stderr) == (0, "")
    whole = Learner.load(file)
    parts = whole.evaluate(list(seq_digits())).class_il
    assert parts is not None
    sizes = [len(task.test) for task in seq_digits()]
    mean = sum(p * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)
    assert float(done.stdout.splitlines()[-1].split()[1]) == pytest.approx(mean, abs=0.3)
    done = made.run(program, "learn", file, tmp_path / "two.sparcl", "--epochs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert Learner.load(file).learned == whole.learned + 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr_schedule": "cosine"}, "no learning-rate schedule and no clipping"),
        ({"warmup": 0.1}, "no learning-rate schedule and no clipping"),
        ({"clip_grad_norm": 1.0}, "no learning-rate schedule and no clipping"),
        ({"method": type("Own", (ER,), {})(9)}, "method Own is your own"),
        ({"sparsifier": type("Own", (Static,), {})(0.5)}, "sparsifier Own is your own"),
    ],
)
def test_what_a_device_would_leave_out_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    learner, stream = Learner(ConvNet(10, 1, 8), **options), seq_digits(limit_per_class=5)
    shape, classes = stream.input_shape, stream.class_names
    with pytest.raises(ConfigError, match=said):
        export_device(learner, tmp_path / "m", transform=Transform(), input_shape=shape, classes=classes)
    plain = Learner(ConvNet(10, 1, 8))
    own = Transform(augment=lambda batch, _: batch)
    with pytest.raises(ConfigError, match="a function of your own"):
        export_device(plain, tmp_path / "m", transform=own, input_shape=shape, classes=classes)
    with pytest.raises(ConfigError, match=r"transform None is not allowed; use a streams\.Transform"):
        export_device(plain, tmp_path / "m", transform=None, input_shape=shape, classes=classes)
    with pytest.raises(ConfigError, match=r"input shape \[1, -8, 8\] is not allowed; use sizes of 1 or more"):
        export_device(plain, tmp_path / "m", transform=Transform(), input_shape=(1, -8, 8), classes=classes)
    assert not (tmp_path / "m").exists()


def test_a_pruned_layer_that_is_never_called_is_refused(tmp_path: Path) -> None:
    """It was exported, and the device refused to learn: its mask would have to move, too."""
    task, *_ = made.stream()
    learner = Learner(Idle(), ER(9), Static(0.5, prunable=["body", "aside.0"]))
    learner.learn(task)
    with pytest.raises(ConfigError, match=r"layer aside\.0 is pruned, and the network's forward never calls it"):
        made.export(learner, tmp_path / "m", task)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "nowhere", "--out", "x", "--format", "gif"), "unknown format 'gif'; allowed: torch, onnx, device"),
        (("export", "nowhere", "--out", "x", "--format", "device"), "nowhere"),
        (("pack", "seq-digits", "--task", "9", "--out", "x"), "task 9 is not there; seq-digits has the tasks 1 to 5"),
        (("pack", "seq-digits", "--split", "all", "--out", "x"), "unknown split 'all'; allowed: train, test"),
        (("pack", "seq-digits", "--out", "/dev/null/x"), "/dev/null/x cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
