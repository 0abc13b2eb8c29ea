"""`sparcl predict`: the answers of a run's files are those that were measured, and bad input is one line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparcl import Learner, streams
from sparcl.learner.prediction import Prediction
from sparcl.main import _main
from sparcl.run import predict
from sparcl.run.answering import Answering

QUICK = ["--epochs", "2", "--width", "8", "--limit-per-class", "40", "--threads", "1"]


def made_run(out: Path, method: str = "er", sparsifier: str = "sparcl", backend: str = "auto") -> Path:
    command = ["run", "seq-digits", *QUICK, "--method", method, "--sparsifier", sparsifier, "--backend", backend]
    assert _main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return made_run(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def stream() -> streams.Stream:
    return streams.load("seq-digits", limit_per_class=40)


def asked(capsys: pytest.CaptureFixture[str], run: Path, *arguments: object) -> list[dict]:
    capsys.readouterr()
    assert _main(["predict", str(run), *map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert _main(["predict", *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_the_files_answer_as_the_learner_does(tmp_path, run, stream, capsys) -> None:
    pixels = torch.cat([task.test.inputs for task in stream])
    np.save(tmp_path / "x.npy", pixels.numpy())
    rows = asked(capsys, run, tmp_path / "x.npy", "--top", 10)
    learner = Learner.load(run / "checkpoint", backend="reference")
    learner.transform = stream.tasks[0].transform
    expected = learner.predict(pixels)
    assert [row["sample"] for row in rows] == list(range(len(pixels)))
    assert [row["answers"][0]["class"] for row in rows] == [stream.class_names[k] for k in expected.columns.tolist()]
    told = torch.tensor([[a["probability"] for a in row["answers"]] for row in rows])
    torch.testing.assert_close(told, expected.probabilities.sort(dim=1, descending=True).values, atol=1e-5, rtol=0)
    labels = torch.cat([task.test.labels for task in stream])
    own = json.loads((run / "result.json").read_text(encoding="utf-8"))["class_il"]
    right = [row["answers"][0]["class"] == stream.class_names[k] for row, k in zip(rows, labels.tolist(), strict=True)]
    sizes = [len(task.test) for task in stream]
    per_task = [sum(some) / len(some) for some in np.split(np.array(right), np.cumsum(sizes)[:-1])]
    assert 100 * np.mean(per_task) == pytest.approx(own, abs=0.1)


@pytest.mark.parametrize("method", ["packnet", "icarl"])
def test_a_method_answers_with_what_it_needs(tmp_path, capsys, stream, method) -> None:
    run = made_run(tmp_path / "run", method, "dense", "reference")
    own = json.loads((run / "result.json").read_text(encoding="utf-8"))
    right = []
    for task in stream:
        np.save(tmp_path / "x.npy", task.test.inputs.numpy())
        rows = asked(capsys, run, tmp_path / "x.npy", "--task", task.index + 1)
        names = [stream.class_names[k] for k in task.test.labels.tolist()]
        right.append(np.mean([row["answers"][0]["class"] == name for row, name in zip(rows, names, strict=True)]))
    assert 100 * np.mean(right) == pytest.approx(own["task_il"], abs=0.1)
    if method == "packnet":
        assert "answers for one task: add --task 1 to 5" in refused(capsys, run, tmp_path / "x.npy")


def test_images_of_any_size_answer_as_their_pixels(tmp_path, run, stream, capsys) -> None:
    pixels = stream.tasks[0].test.inputs[:2]
    for i in (0, 1):
        Image.fromarray(pixels[i, 0].numpy()).save(tmp_path / f"{i}.png")
    Image.fromarray(pixels[0, 0].numpy()).resize((24, 24)).save(tmp_path / "large.bmp")
    np.save(tmp_path / "x.npy", pixels.numpy())
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    rows, expected = asked(capsys, run, *files), asked(capsys, run, tmp_path / "x.npy")
    assert [row["answers"] for row in rows] == [row["answers"] for row in expected]
    assert [(row["file"], row["sample"]) for row in rows] == [(str(file), None) for file in files]
    assert _main(["predict", str(run), str(tmp_path / "large.bmp")]) == 0
    told = capsys.readouterr()
    assert f"1 image(s) were resized to 8×8, the run's own size; the first is {tmp_path}" in told.err
    assert "%" in told.out


@pytest.mark.parametrize(
    ("size", "shape", "orientation", "resized"),
    [
        ((8, 6), (3, 6, 8), 1, 0),
        ((6, 8), (3, 6, 8), 6, 0),
        ((8, 6), (3, 6, 8), 6, 1),
        ((8, 6), (1, 6, 8), 1, 0),
        ((1, 1), (3, 1, 1), 1, 0),
    ],
)
def test_an_image_that_is_only_turned_was_not_resized(size, shape, orientation, resized) -> None:
    """And one of a single pixel is a tensor as the others are, without a warning of Python's."""
    exif, file, told = Image.Exif(), io.BytesIO(), []
    exif[0x0112] = orientation
    Image.new("RGB", size, (200, 200, 200)).save(file, "PNG", exif=exif)
    run: Any = SimpleNamespace(input_shape=shape, pixels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = predict.image(run, file.getvalue(), "x.png", told.append)
    assert (sample.shape, len(told)) == (shape, resized)


@pytest.mark.parametrize("content", [[], "3", None])
def test_a_result_that_is_no_object_is_damaged(tmp_path, run, capsys, content) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "result.json").write_text(json.dumps(content), encoding="utf-8")
    assert "it holds no JSON object" in refused(capsys, copied, tmp_path / "x.npy")


def test_one_sample_and_pixels_as_floats_are_the_same_pixels(tmp_path, run, stream, capsys) -> None:
    pixel = stream.tasks[1].test.inputs[0].numpy()
    found = []
    for array in (pixel, pixel[None].astype(np.int64), pixel.astype(np.float32) / 255):
        np.save(tmp_path / "x.npy", array)
        found.append(asked(capsys, run, tmp_path / "x.npy")[0]["answers"][0])
    assert len({one["class"] for one in found}) == 1
    assert [one["probability"] for one in found] == pytest.approx([found[0]["probability"]] * 3, abs=1e-5)


def test_images_and_floating_pixels_of_one_command_are_each_read_as_they_are(tmp_path, run, stream, capsys) -> None:
    pixel = stream.tasks[1].test.inputs[0].numpy()
    Image.fromarray(pixel[0]).save(tmp_path / "x.png")
    np.save(tmp_path / "whole.npy", pixel)
    np.save(tmp_path / "floating.npy", pixel.astype(np.float32) / 255)
    rows = asked(capsys, run, *(tmp_path / name for name in ("x.png", "floating.npy", "whole.npy")), "--top", 10)
    probabilities = [{one["class"]: one["probability"] for one in row["answers"]} for row in rows]
    assert probabilities[1] == pytest.approx(probabilities[0], abs=1e-5)
    assert probabilities[2] == pytest.approx(probabilities[0], abs=1e-5)


def test_tables_and_csv_show_what_strangers_named_and_obey_nothing(tmp_path, run, stream, capsys, monkeypatch) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    result = json.loads((copied / "result.json").read_text(encoding="utf-8"))
    result["data"]["class_names"] = [f"=HYPERLINK({k})\x1b[31m[bold]" for k in range(10)]
    (copied / "result.json").write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    np.save("=x.npy", stream.tasks[0].test.inputs[:3].numpy())
    assert _main(["predict", str(copied), "=x.npy", "--format", "csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["file"], row["sample"], row["rank"]) for row in rows[:3]] == [
        ("'=x.npy", "0", "1"),
        ("'=x.npy", "0", "2"),
        ("'=x.npy", "1", "1"),
    ]
    assert re.fullmatch(r"'=HYPERLINK\(\d\)\\x1b\[31m\[bold\]", rows[0]["class"])
    assert sum(float(row["probability"]) for row in rows[:2]) <= 1.00001
    assert _main(["predict", str(copied), "=x.npy"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    assert "[bold]" in shown


def test_bad_files_are_one_line(tmp_path, run, capsys) -> None:
    x = tmp_path / "x.npy"
    bad = np.zeros((2, 1, 8, 8), np.float32)
    bad[1, 0, 3, 3] = np.nan
    for array, told in (
        (bad, "NaN or infinite values, the first in sample 1"),
        (np.full((1, 1, 8, 8), 255.0), "x.npy inputs hold values from 255 to 255: the network learned pixels"),
        (np.ones((1, 1, 8, 8), bool), "x.npy inputs are truth values: the network learned pixels"),
        (np.full((1, 1, 8, 8), -1), "x.npy inputs hold values from -1 to -1"),
        (np.zeros((8, 8), np.uint8), r"has shape [8, 8]: allowed are [N, 1, 8, 8] and one sample [1, 8, 8]"),
        (np.zeros((0, 1, 8, 8), np.uint8), "has shape [0, 1, 8, 8]"),
        (np.array(["a"]), "holds <U1: allowed are numbers"),
        (np.array([{}]), "is no readable .npy array (it holds Python objects)"),
    ):
        np.save(x, array, allow_pickle=True)
        assert told in refused(capsys, run, x)
    np.save(x, np.zeros((4, 1, 8, 8), np.uint8))
    x.write_bytes(x.read_bytes()[:-5])
    assert "its size does not fit its shape" in refused(capsys, run, x)
    x.write_bytes(x.read_bytes().replace(b"(4, 1, 8, 8)", b"(4 ** 9 ** 9")[:200])
    assert "is no readable .npy array" in refused(capsys, run, x)
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "a.png is no readable image" in refused(capsys, run, tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"text")
    assert "a.txt is of no known kind" in refused(capsys, run, tmp_path / "a.txt")
    assert "it is a folder: name files" in refused(capsys, run, tmp_path)
    assert "none.png does not exist" in refused(capsys, run, tmp_path / "none.png")


def test_a_sample_without_an_answer_is_named_and_not_the_first(tmp_path, monkeypatch, run, capsys) -> None:
    """Of all that are asked together one is too large for the network."""
    files = [tmp_path / name for name in ("a.npy", "b.npy", "c.npy")]
    for file in files:
        np.save(file, np.zeros((2, 1, 8, 8), np.uint8))
    whole = Answering.predict

    def overflowing(self: Answering, inputs: torch.Tensor, task: int | None = None) -> Prediction:
        answered = whole(self, inputs, task)
        answered.probabilities[3:4] = torch.nan  # none where one sample is asked, as the check of the run's files does
        return answered

    monkeypatch.setattr(Answering, "predict", overflowing)
    assert refused(capsys, run, *files) == f"sparcl: the network's answer to {files[1]}[1] is no number\n"


def test_bad_options_and_runs_are_one_line(tmp_path, run, capsys) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    x = tmp_path / "x.npy"
    assert "unknown format 'xml'; allowed: table, csv, json" in refused(capsys, run, x, "--format", "xml")
    assert "top 0 is not allowed; use 1 to 10" in refused(capsys, run, x, "--top", 0)
    assert "top 3 is not allowed; use 1 to 2" in refused(capsys, run, x, "--top", 3, "--task", 1)
    assert "task 6 is not known; allowed are 1 to 5" in refused(capsys, run, x, "--task", 6)
    assert "is no run directory" in refused(capsys, tmp_path / "none", x)
    assert "holds no run" in refused(capsys, tmp_path, x)
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "config.toml", begun)
    assert "is not finished: go on with sparcl run --resume" in refused(capsys, begun, x)


def test_a_damaged_run_is_one_line(tmp_path, run, capsys) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    for key, value in (
        ("class_names", None),
        ("class_names", [[]] * 10),
        ("tasks", [[0, 99]]),
        ("tasks", []),
        ("input_shape", [1, 10**9, 10**9]),
        ("mean", ["x"]),
        ("std", [0.0]),
    ):
        changed = {**result, "data": {**result["data"], key: value}}
        (copied / "result.json").write_text(json.dumps(changed), encoding="utf-8")
        assert "is damaged" in refused(capsys, copied, tmp_path / "x.npy"), key
    (copied / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "data"}), encoding="utf-8")
    assert "does not say what the classes are" in refused(capsys, copied, tmp_path / "x.npy")
    fewer = {**result["data"], "class_names": result["data"]["class_names"][:8], "tasks": [[0, 1]]}
    (copied / "result.json").write_text(json.dumps({**result, "data": fewer}), encoding="utf-8")
    assert "has another shape or type" in refused(capsys, copied, tmp_path / "x.npy")
    shutil.copy(run / "result.json", copied)
    (copied / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-3])
    assert "is no safetensors file, or damaged" in refused(capsys, copied, tmp_path / "x.npy")
    os.remove(copied / "model.safetensors")
    assert "does not exist" in refused(capsys, copied, tmp_path / "x.npy")


def test_files_changed_at_random_are_answered_or_refused_in_one_line(tmp_path, run, capsys) -> None:
    copied, x, rng = tmp_path / "run", tmp_path / "x.npy", random.Random(5)
    shutil.copytree(run, copied)
    np.save(x, np.zeros((2, 1, 8, 8), np.uint8))
    codes = set()
    for _ in range(120):
        file = rng.choice([x, *(copied / name for name in ("result.json", "config.toml", "model.safetensors"))])
        own = file.read_bytes()
        at = rng.randrange(min(len(own), rng.choice([200, 3000, len(own)])))
        piece = rng.choice([b"", b"9", b"[", b"-", b"1e9", b'"', b"{", bytes([rng.randrange(256)])])
        file.write_bytes(own[:at] + piece + own[at + rng.randrange(3) :])
        capsys.readouterr()
        codes.add(code := _main(["predict", str(copied), str(x), "--format", "csv"]))
        told = capsys.readouterr()
        assert (code, told.err.count("\n"), bool(told.out)) in {(0, 0, True), (2, 1, False)}, told.err
        file.write_bytes(own)
    assert codes == {0, 2}
