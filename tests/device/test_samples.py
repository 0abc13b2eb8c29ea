"""Samples that do not fit the network, or are none: refused before anything is learned, as Python refuses them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from PIL import Image

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import METHODS, Finetune
from sparcl.nn import MLP, ConvNet
from sparcl.run.device_file import answering
from sparcl.run.export_device import export_device, pack, pack_stream
from sparcl.sparsity import Sparsifier
from sparcl.streams import Samples, Transform, make_task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    first, *_ = made.stream()
    learner = made.learner()
    learner.learn(first)
    return made.export(learner, tmp_path / "m.sparcl", first)


def images(folder: Path, *names: str | bytes) -> Path:
    """Two images in a folder for each class."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for name in names:
        (place := Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))).mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(place / f"{i}.ppm")
    return folder


def refused(
    program: Path, file: Path, samples: Path, said: str, *commands: str, options: tuple[object, ...] = ()
) -> None:
    """By each command, in one line that says so; nothing is written."""
    before = file.read_bytes()
    for command in commands or ("learn", "evaluate", "predict"):
        done = made.run(program, command, file, samples, *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (command, done)
        assert said in done.stderr, (command, done.stderr)
    assert file.read_bytes() == before


def test_a_name_that_is_not_utf_8(program: Path, file: Path, tmp_path: Path) -> None:
    refused(program, file, images(tmp_path / "im", b"caf\xe9"), "is no name of a class: it is not UTF-8", "learn")
    samples = made.packed(made.stream()[0], tmp_path / "s.sparcl")
    whole = samples.read_bytes()
    for bad in (b"\xe9xx", b"\xed\xa0\x80", b"\xc0\x80x", b"\xf5xx"):  # Latin, a surrogate, not the shortest, too large
        samples.write_bytes(whole.replace(b"cat", bad))
        refused(program, file, samples, "is not UTF-8")
    assert made.run(program, "learn", file, images(tmp_path / "new", "né", "日本", "𝛑")).returncode == 0
    assert Learner.load(file).learned == 2


def of_floats(folder: Path, shape: tuple[int, ...], method: str = "er") -> Path:
    """A file of a network that has learned float32 samples of this shape."""
    x, y = 255 * torch.rand(20, *shape), torch.arange(20) % 2
    task = make_task(x, y.tolist(), transform=Transform())
    model = MLP(2, shape, 8) if len(shape) == 1 else ConvNet(2, shape[0], 8)
    kind = METHODS[method]
    made_method = kind(12) if method == "er" else kind()
    learner = Learner(model, made_method, Sparsifier(), lr=0.01, batch_size=8, classes=(0, 1))
    learner.learn(task)
    export_device(learner, folder / "f.sparcl", transform=Transform(), input_shape=shape, classes=learner.classes.names)
    return folder / "f.sparcl"


@pytest.mark.parametrize("method", ["er", "finetune"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3,)])
def test_a_network_that_learned_no_pixels_takes_no_images(
    program: Path, tmp_path: Path, shape: tuple[int, ...], method: str
) -> None:
    file, folder = of_floats(tmp_path, shape, method), images(tmp_path / "im", "0", "1")
    for options in ((), ("--resize",)):
        refused(program, file, folder, "that are no images", options=options)
    pack(Samples(torch.zeros(2, *shape, dtype=torch.uint8), torch.arange(2)), [0, 1], tmp_path / "u.sparcl")
    refused(program, file, tmp_path / "u.sparcl", "uint8 samples where the network has learned float32")
    pack(Samples(200 * torch.rand(4, *shape), torch.arange(4) % 2), [0, 2], tmp_path / "s.sparcl")
    assert made.run(program, "learn", file, tmp_path / "s.sparcl", "--epochs", 1).returncode == 0
    left = model_file.read(file)
    assert (left.classes, left.device["samples"]) == (["0", "1", "2"], "float32")
    assert Learner.load(file).classes.names == [0, 1, 2]  # whole numbers, as they were


def test_numbers_that_no_sample_has(program: Path, file: Path, tmp_path: Path) -> None:
    labels, samples = torch.arange(4), tmp_path / "s.sparcl"
    for value, said in ((float("nan"), "NaN or infinite values, the first in sample 2"), (7.0, "floating from 0 to 1")):
        x = torch.rand(4, *made.SHAPE)
        x[2, 1, 3, 3] = value
        pack(Samples(x, labels), made.CLASSES[:4], samples)
        refused(program, file, samples, said)
    pack(Samples(torch.rand(4, *made.SHAPE), labels), made.CLASSES[:4], samples)
    assert made.run(program, "predict", file, samples).returncode == 0


def test_classes_of_packed_samples(program: Path, file: Path, tmp_path: Path) -> None:
    task, samples = made.stream()[2], tmp_path / "s.sparcl"
    with pytest.raises(ConfigError, match="class 'n' is named twice"):
        pack(task.train, ["a", "b", "c", "d", "n", "n"], samples)
    with pytest.raises(ConfigError, match="labels from 4 to 5 do not point into 5 classes"):
        pack(task.train, ["a", "b", "c", "d", "n"], samples)
    pack(task.train, ["a", "b", "c", "d", "n", "m"], samples)
    known = 'class "n" has no column: it was never learned; known are: ["cat"'
    refused(program, file, samples, known, "evaluate")
    done = made.run(program, "learn", file, samples, "--epochs", 1)
    assert "2 new class(es)" in done.stdout  # those of no samples get no column
    assert model_file.read(file).classes == [*made.CLASSES[:4], "n", "m"]
    samples.write_bytes(samples.read_bytes().replace(b'\\"m\\"', b'\\"n\\"'))
    refused(program, file, samples, 'class "n" is named twice')


def test_one_sample_has_no_batch_statistics(program: Path, file: Path, tmp_path: Path) -> None:
    train = made.stream()[0].train
    pack(Samples(train.inputs[:1], train.labels[:1]), made.CLASSES[:4], tmp_path / "s.sparcl")
    refused(program, file, tmp_path / "s.sparcl", "layer 1 needs 2 or more for its batch statistics", "learn")
    learner = made.learner("mlp", method=Finetune())
    made.export(learner, file, made.stream()[0])
    assert made.run(program, "learn", file, tmp_path / "s.sparcl", "--steps", 1).returncode == 0


def test_what_is_no_image_is_passed_over_and_told(program: Path, file: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "im", "cat", "x")
    (folder / "cat" / "Thumbs.db").write_bytes(b"no image")
    (folder / "cat" / "more").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "loose.ppm").write_bytes((folder / "cat" / "0.ppm").read_bytes())
    for command, count in (("learn", 3), ("evaluate", 3), ("predict", 2)):
        done = made.run(program, command, file, folder)
        assert done.returncode == 0, done
        first = folder / "cat" / "Thumbs.db"
        assert done.stderr == f"sparcl-device: {count} file(s) passed over, the first {first}\n"
    images(folder, "unknown")
    refused(program, file, folder, 'class "unknown" has no column', "evaluate")
    (folder / "x" / "photo.webp").write_bytes(b"RIFF")
    refused(program, file, folder, "photo.webp is no readable image: allowed are", "learn")


def test_names_stay_in_their_line_and_steer_nothing(program: Path, file: Path, tmp_path: Path) -> None:
    names = [
        b"a\nb",
        b'q"u\\',
        "\x1b[2J\x7f\x9b\u202e\u2028".encode(),
        "né 日本 𝛑".encode(),
        b"caf\xe9",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
    ]
    folder = images(tmp_path / "im", *names)
    done = subprocess.run([program, "predict", file, folder], capture_output=True, text=True, check=True)  # all UTF-8
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    lines = [json.JSONDecoder().raw_decode(line) for line in done.stdout.splitlines()]
    assert sorted(os.fsencode(name) for name, _ in lines) == sorted(
        os.fsencode(folder) + b"/" + name + b"/%d.ppm" % k for name in names for k in (0, 1)
    )
    missing = os.fsencode(folder) + "/\n\x9b né".encode() + b"\xe9"
    done = subprocess.run([program, "predict", file, missing], capture_output=True, text=True, check=False)
    assert done.stderr == f"sparcl-device: {folder}/?? né? cannot be read: No such file or directory\n"


def test_a_folder_without_images_beside_images(program: Path, file: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "im", "cat")
    (folder / "empty").mkdir()
    (folder / "raw").mkdir()
    (folder / "raw" / "x.raw").write_bytes(b"raw")
    done = made.run(program, "predict", file, folder)
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert done.stderr == f"sparcl-device: 2 file(s) passed over, the first {folder / 'empty'}\n"
    refused(program, file, folder, "empty holds no image", "learn", "evaluate")
    refused(program, file, folder / "empty", "empty holds no image", "predict")


def test_what_was_answered_before_a_bad_image_is_said(program: Path, file: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "im").mkdir()
    good = (images(tmp_path / "one", "cat") / "cat" / "0.ppm").read_bytes()
    places = [folder / f"{k:02}.ppm" for k in range(30)]
    for place in places:
        place.write_bytes(good)
    whole = made.run(program, "predict", file, folder)
    assert (whole.returncode, whole.stdout.count("\n"), whole.stderr) == (0, 30, "")
    for bad in (0, 1, 7, 20, 29):
        places[bad].write_bytes(good[:12])
        done = made.run(program, "predict", file, folder)
        said = f"sparcl-device: {places[bad]} is no readable image: it ends too early\n"
        assert (done.returncode, done.stderr) == (2, said)
        assert done.stdout.splitlines() == whole.stdout.splitlines()[:bad]
        places[bad].write_bytes(good)


def test_answers_come_as_they_are_found(program: Path, file: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "im").mkdir()
    Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save(folder / "0.ppm")
    for k in range(1, 500):  # which would take a minute
        (folder / f"{k}.ppm").hardlink_to(folder / "0.ppm")
    command = list(map(str, (program, "predict", file, folder, "--resize")))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f'"{folder}/0.ppm" ')
        assert process.poll() is None
        process.terminate()
        assert process.stdout.read().count("\n") < 499


def test_what_cannot_be_read(program: Path, file: Path, tmp_path: Path) -> None:
    for content in (b"", b"BM", b"GIF89a" + bytes(60), b"RIFF\x10\0\0\0WEBPVP8 " + bytes(60)):
        (photo := tmp_path / "photo").write_bytes(content)
        refused(program, file, photo, "is neither what sparcl pack wrote nor an image that is read here: allowed are")
    folder = images(tmp_path / "im", "cat")
    (folder / "loop").symlink_to("loop")
    refused(program, file, folder, "loop cannot be read: Too many levels")
    refused(program, file, folder / "loop", "loop cannot be read: Too many levels")


def test_options_without_effect(program: Path, file: Path, tmp_path: Path) -> None:
    samples = made.packed(made.stream()[0], tmp_path / "s.sparcl")
    refused(program, file, samples, "--resize is for images", options=("--resize",))
    refused(program, file, samples, "--new-task has no effect", "learn", options=("--new-task",))


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_that_answers_with_more_than_its_network(program: Path, tmp_path: Path, method: str) -> None:
    stream = made.stream()
    wants: Callable[..., object] = METHODS[method]
    sized = method not in ("finetune", "joint", "ewc", "lwf", "packnet", "lps")
    sparsifier = {"sparsifier": Sparsifier()} if method in ("packnet", "lps") else {}
    learner = made.learner(method=wants(12) if sized else wants(), **sparsifier)
    file, samples = (
        made.export(learner, tmp_path / "m.sparcl", stream[0]),
        made.packed(stream[0], tmp_path / "s.sparcl"),
    )
    try:
        answering(file)
    except CheckpointError:
        refused(program, file, samples, f"method {method} answers with more than its network", "predict", "evaluate")
    else:
        for command in ("predict", "evaluate"):
            assert made.run(program, command, file, samples).returncode == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_folder_of_any_number_of_classes_is_packed(tmp_path: Path, count: int) -> None:
    names = ["a", "b", "c"][:count]
    folder = images(tmp_path / "im", *names)
    options = {"task": None, "split": "train", "data": str(folder)}
    assert pack_stream("folder", tmp_path / "s.sparcl", **options) == 2 * count
    header = (tmp_path / "s.sparcl").read_bytes()
    said = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["classes"]
    assert json.loads(said) == names
