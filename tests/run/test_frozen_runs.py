"""`sparcl run` with a frozen part and with a buffer of another kind: its records, its resume, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparcl.main import _main
from sparcl.run.experiment import Experiment
from sparcl.run.toml import read_toml

RUN = ["run", "seq-digits", "--limit-per-class", "30", "--epochs", "1", "--width", "8", "--threads", "1"]


def run(out: Path, *more: str) -> int:
    return _main([*RUN, "--out", str(out), *more])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_run_keeps_what_it_was_told_and_runs_again_from_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--freeze", "0,1", "--buffer-bytes", "4kB", "--buffer-policy", "balanced"]
    assert run(tmp_path / "one", *options) == 0
    config = read_toml(tmp_path / "one" / "config.toml")
    assert (config["freeze"], config["buffer_bytes"], config["buffer_policy"]) == ("0,1", "4kB", "balanced")
    assert "buffer_size" not in config
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert 2000 < result["memory"]["buffer_bytes"] <= 4000
    assert result["sparsity"]["prunable"] < 0.99 * result["sparsity"]["total"]
    again = ["run", "--config", str(tmp_path / "one" / "config.toml"), "--out", str(tmp_path / "two")]
    assert _main(again) == 0
    other = json.loads((tmp_path / "two" / "result.json").read_text())
    assert other["model_sha256"] == result["model_sha256"]
    assert _main([*again[:-1], str(tmp_path / "three"), "--buffer-size", "20"]) == 0  # in place of the bytes
    capsys.readouterr()
    for changed in (["--freeze", "0"], ["--buffer-policy", "reservoir"], ["--buffer-bytes", "5kB"]):
        assert run(tmp_path / "one", *options, *changed, "--resume") == 2
        assert "changed configuration" in told(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--freeze", "stem"], "freeze names 'stem', which the model has not; allowed are names"),
        (["--freeze", "*"], "nothing of the model would learn"),
        (["--latents", "int8"], "name it with --freeze"),
        (["--latents", "int4", "--freeze", "0"], "unknown latents 'int4'; allowed: float32, float16, int8"),
        (["--latents", "int8", "--freeze", "3"], "nothing that is frozen stands at the front"),
        (["--latents", "int8", "--freeze", "0", "--buffer-storage", "jpeg"], "leave buffer storage jpeg out"),
        (["--buffer-bytes", "2MB", "--buffer-size", "7"], "a buffer size and buffer bytes: give one of them"),
        (["--buffer-bytes", "20"], "buffer bytes 20 are too few"),
        (["--buffer-bytes", "many"], "use a number of bytes or such as"),
        (["--buffer-policy", "oldest"], "allowed: reservoir, balanced"),
        (["--buffer-storage", "float16"], "for floating inputs, not uint8"),
        (
            ["--method", "ewc", "--sparsifier", "dense", "--buffer-storage", "jpeg"],
            "method ewc has no buffer; --buffer-storage",
        ),
        (["--method", "agem", "--buffer-policy", "balanced"], "method agem has a buffer policy of its own"),
        (["--method", "icarl", "--buffer-bytes", "9kB", "--buffer-storage", "jpeg"], "fills its buffer once a task"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *options) == 2
    assert said in told(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["derpp", "icarl"])
def test_a_run_on_latents_answers_to_images_and_counts_the_front_once(tmp_path: Path, method: str) -> None:
    flops = []
    for name, more in (("images", []), ("latents", ["--latents", "int8"])):
        options = ["--freeze", "0,1", "--method", method, "--epochs", "8", "--sparsity", "0.5", *more]
        assert run(tmp_path / name, *options) == 0
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["task_il"] > 60.0
        flops.append(result["flops"])
    if method == "derpp":
        front = 2 * 64 * 9 * 8  # FLOPs of the first layer on a digit of 8×8
        assert flops[1]["phases"]["other"] - flops[0]["phases"]["other"] == 300 * front
    assert flops[1]["executed"] < flops[0]["executed"]
    assert _main(["predict", str(tmp_path / "latents"), str(samples_file(tmp_path)), "--format", "json"]) == 0


def samples_file(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((3, 1, 8, 8), dtype=np.uint8))
    return folder / "x.npy"


def test_older_checkpoints_know_none_of_these_settings() -> None:
    from sparcl.run.resume import check_same, settings

    experiment = Experiment("seq-digits").resolve()
    saved = settings(experiment)
    for name in ("freeze", "buffer_bytes", "buffer_policy", "buffer_storage"):
        del saved[name]
    check_same(experiment, saved, "here")


def test_an_augmentation_that_is_asked_for_is_refused_with_latents(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "folder", "--data", "none", "--freeze", "0", "--latents", "int8", "--augment", "flip"]
    assert _main(words) == 2
    assert capsys.readouterr().err == (
        "sparcl: latents int8 are computed once for each sample: leave augment out, or none\n"
    )
