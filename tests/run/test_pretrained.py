"""`--init`: a run starts from given weights, says what it does not take of them, and goes on from the same only."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparcl import nn, streams
from sparcl.errors import CheckpointError, ConfigError
from sparcl.main import _main
from sparcl.run import build, pretrained, sweep
from sparcl.run.experiment import Experiment
from sparcl.run.overriding import overridden
from sparcl.run.resume import check_same, settings

QUICK = ["--epochs", "1", "--width", "8", "--limit-per-class", "20", "--threads", "1", "--backend", "reference"]


def weights(file: Path, classes: int = 10, seed: int = 3, **changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    own = nn.build("convnet", classes, (1, 8, 8), 8).state_dict()
    state = {k: torch.rand(v.shape) if v.is_floating_point() else v for k, v in own.items()}
    for key, value in changed.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    save_file(state, file)
    return state


def experiment(file: Path, **more: object) -> Experiment:
    values = {"stream": "seq-digits", "width": 8, "limit_per_class": 20, "epochs": 1, "backend": "reference"}
    return Experiment(**values, init=str(file), **more).resolve()


@pytest.fixture(scope="module")
def stream() -> streams.Stream:
    return streams.load("seq-digits", limit_per_class=20)


def test_training_starts_from_the_weights_and_the_largest_stay(tmp_path, stream) -> None:
    state = weights(tmp_path / "w.safetensors")
    dense = build.learner(experiment(tmp_path / "w.safetensors", sparsifier="dense"), stream).model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(dense[name], tensor), name
    sparse = build.learner(experiment(tmp_path / "w.safetensors", sparsifier="static"), stream).model
    weight, given = sparse.get_submodule("3").weight.detach(), state["3.weight"]
    kept = weight != 0
    assert torch.equal(weight[kept], given[kept])
    assert given[kept].min() >= given[~kept].max()
    assert experiment(tmp_path / "w.safetensors").first_mask == "magnitude"
    assert experiment(tmp_path / "w.safetensors", first_mask="random").first_mask == "random"
    assert Experiment("seq-digits").resolve().first_mask == "random"


def test_a_classifier_of_another_size_starts_fresh_and_says_so(tmp_path, stream) -> None:
    file = tmp_path / "w.safetensors"
    state = weights(file, classes=7)
    with pytest.warns(UserWarning, match=r"no classifier of 10 classes: 14\.weight, 14\.bias start fresh"):
        loaded = build.learner(experiment(file, sparsifier="dense"), stream).model.state_dict()
    fresh = build.learner(Experiment("seq-digits", width=8, limit_per_class=20, sparsifier="dense").resolve(), stream)
    assert torch.equal(loaded["14.weight"], fresh.model.state_dict()["14.weight"])
    assert torch.equal(loaded["14.bias"], fresh.model.state_dict()["14.bias"])
    assert torch.equal(loaded["0.weight"], state["0.weight"])
    weights(file, **{"14__weight": None, "14__bias": None})
    with pytest.warns(UserWarning, match="start fresh"):
        build.learner(experiment(file, sparsifier="dense"), stream)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"3__weight": None}, "lacks 3.weight, which the model has"),
        ({"extra": torch.zeros(2)}, "holds extra, which the model has not (it has 0.weight"),
        ({"3__weight": torch.zeros(4, 8, 3, 3)}, "has 3.weight as float32 [4, 8, 3, 3], but the model as float32 [8"),
        ({"3__weight": torch.zeros(8, 8, 3, 3, dtype=torch.int32)}, "has 3.weight as int32"),
        ({"14__weight": torch.zeros(10, 5)}, "has 14.weight as float32 [10, 5]"),
        ({"3__weight": torch.full((8, 8, 3, 3), float("nan"))}, "has NaN or infinite values in '3.weight'"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_made(tmp_path, capsys, changed, told) -> None:
    weights(tmp_path / "w.safetensors", **changed)
    command = ["run", "seq-digits", *QUICK, "--init", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "run")]
    assert _main(command) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_only_safetensors_are_read(tmp_path, capsys) -> None:
    file = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1)}, file)
    for content, told in ((file.read_bytes(), "is a pickle"), (b"x" * 99, "is no safetensors file, or damaged")):
        file.write_bytes(content)
        assert _main(["run", "seq-digits", *QUICK, "--init", str(file), "--out", str(tmp_path / "run")]) == 2
        assert told in capsys.readouterr().err
    assert _main(["run", "seq-digits", *QUICK, "--init", str(tmp_path / "none"), "--out", str(tmp_path / "r")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_the_file_is_recorded_and_another_is_refused(tmp_path, capsys) -> None:
    file, out = tmp_path / "w.safetensors", tmp_path / "run"
    weights(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    command = ["run", "seq-digits", *QUICK, "--init", str(file), "--out", str(out)]
    assert _main(command) == 0
    known = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    assert (known["init"], known["init_sha256"], known["first_mask"]) == (str(file), sha256, "magnitude")
    file.rename(tmp_path / "moved.safetensors")
    moved = ["run", "seq-digits", *QUICK, "--init", str(tmp_path / "moved.safetensors"), "--out", str(out), "--resume"]
    assert _main(moved) == 0
    weights(file, seed=4)
    capsys.readouterr()
    assert _main([*command, "--resume"]) == 2
    assert "cannot resume with a changed configuration: init_sha256 is" in capsys.readouterr().err
    again = ["run", "--config", str(out / "config.toml"), "--out", str(tmp_path / "again")]
    assert _main(again) == 2
    assert "is another file than the run began from" in capsys.readouterr().err
    values = overridden(known, {"init": str(file)})
    assert "init_sha256" not in values
    assert pretrained.recorded(Experiment.from_dict(values)).init_sha256 != sha256


def test_a_sweep_knows_its_finished_runs_by_the_file(tmp_path) -> None:
    file, table = tmp_path / "w.safetensors", tmp_path / "sweep.toml"
    weights(file)
    table.write_text(f'[base]\nstream = "seq-digits"\nwidth = 8\ninit = "{file}"\n', encoding="utf-8")
    (cell,) = sweep.read(table)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(cell.experiment.to_toml(), encoding="utf-8")
    sweep._check_directory(tmp_path / "run", cell.experiment)
    weights(file, seed=4)
    (other,) = sweep.read(table)
    with pytest.raises(ConfigError, match="holds a run with init_sha256 = "):
        sweep._check_directory(tmp_path / "run", other.experiment)


def test_settings_of_before_go_on_and_a_checksum_alone_is_refused() -> None:
    plain = Experiment("seq-digits").resolve()
    before = {k: v for k, v in settings(plain).items() if not k.startswith("init")}
    check_same(plain, before, "the checkpoint")
    with pytest.raises(CheckpointError, match="init_sha256 is '0"):
        check_same(dataclasses.replace(plain, init="w", init_sha256="0" * 64), before, "the checkpoint")
    with pytest.raises(ConfigError, match="init_sha256 goes with init"):
        Experiment("seq-digits", init_sha256="0" * 64)
