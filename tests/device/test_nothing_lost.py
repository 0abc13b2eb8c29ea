"""What `learn` may not lose: a stopped task, the model, the samples; and what its exit status says of that."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import made
import pytest
import torch

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.methods import Finetune
from sparcl.nn import MLP
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import Sparsifier
from sparcl.streams import Samples, Transform, make_task


@pytest.fixture
def file(file: Path) -> Path:
    """With samples of a third task beside it, too."""
    made.packed(made.stream(per_class=200)[2], file.with_name("o.sparcl"))
    return file


def done_steps(file: Path) -> int:
    return int(model_file.read(file).state["learner"]["position"]["done"])


def test_what_was_stopped_with_out_goes_on_from_there(program: Path, file: Path) -> None:
    whole, out, samples = file.read_bytes(), file.with_name("out.sparcl"), file.with_name("s.sparcl")
    command = (file, samples, "--steps", 2_000_000, "--out", out)
    made.stopped_inside(program, *command)
    first = done_steps(out)
    assert first > 0
    made.stopped_inside(program, *command)
    assert done_steps(out) > first
    made.stopped_inside(program, out, samples)  # by its own name, too
    made.stopped_inside(program, *command)
    stopped, second = out.read_bytes(), made.export(made.learner(), file.with_name("n.sparcl"), made.stream()[0])
    for model, said in ((second, "was not begun from"), (file, "stands inside a task of other samples")):
        done = made.run(program, "learn", model, file.with_name("o.sparcl"), "--out", out)
        assert (done.returncode, done.stdout, said in done.stderr) == (2, "", True), done
        assert out.read_bytes() == stopped
    assert file.read_bytes() == whole
    said = made.stopped_inside(program, file, samples, "--new-task", "--epochs", 1_000_000, "--out", out)
    assert "the same command without --new-task goes on" in said
    made.stopped_inside(program, file, samples, "--epochs", 1_000_000, "--out", out)
    done = made.run(program, "learn", file, samples, "--new-task", "--steps", 2, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "begun_from" not in model_file.read(out).device
    assert made.run(program, "learn", file, samples, "--steps", 2, "--out", out).returncode == 0  # a finished one


@pytest.mark.parametrize("gone", [True, False])
def test_a_task_that_is_learned_is_done_whoever_reads(program: Path, file: Path, gone: bool) -> None:
    command = list(map(str, (program, "learn", file, file.with_name("s.sparcl"), "--steps", 4)))
    if gone:
        reads, output = os.pipe()
        os.close(reads)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    # the first step is told at once: without a reader it stops there, and the same command goes on
    statuses = []
    while 0 not in statuses and len(statuses) < 9:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
        statuses.append(done.returncode)
        assert done.stderr.count("\n") == 1
        assert "everything is saved" in done.stderr
    os.close(output)
    assert set(statuses[:-1]) == ({141} if gone else set())
    assert statuses[-1] == 0
    assert model_file.read(file).device["tasks"][0]["steps"] == 4


@pytest.mark.parametrize("options", [("--save-every", 0), ("--steps", 4)])
def test_a_task_that_diverges_leaves_the_file(program: Path, file: Path, options: tuple[object, ...]) -> None:
    model = model_file.read(file)
    model.state["optimizer"]["groups"][0]["lr"] = 1e30
    model_file.write(file, model)
    before = file.read_bytes()
    done = made.run(program, "learn", file, file.with_name("s.sparcl"), *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "became NaN or infinite" in done.stderr
    assert "what was saved last is kept" in done.stderr
    left = model_file.read(file).state
    assert all(torch.isfinite(value).all() for value in left["model"].values() if value.is_floating_point())
    assert file.read_bytes() == before or "--save-every" in options  # which is a finite state further on


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2), (2,)])
def test_a_closed_output_is_told_and_no_file_takes_its_place(
    program: Path, file: Path, closed: tuple[int, ...]
) -> None:
    samples, whole = file.with_name("s.sparcl"), file.read_bytes()

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = list(map(str, (program, *arguments)))
        return subprocess.run(command, preexec_fn=close, capture_output=True, text=True, check=False)

    for command in (("info", file), ("predict", file, samples), ("evaluate", file, samples), ("--help",)):
        done = run(*command)
        assert done.returncode == (1 in closed), command
        assert done.stderr == "sparcl-device: the output cannot be written\n" * (1 in closed and 2 not in closed)
    assert file.read_bytes() == whole
    done = run("learn", file, samples, "--steps", 4)
    assert done.returncode == 0
    assert ("everything is saved" in done.stderr) == (1 in closed and 2 not in closed)
    assert model_file.read(file).device["tasks"][0]["steps"] == 4
    assert run("learn", file, samples, "--steps", 0).returncode == 2
    assert sorted(place.name for place in file.parent.iterdir()) == ["m.sparcl", "o.sparcl", "s.sparcl"]


def test_an_answer_that_is_no_number_is_refused(program: Path, file: Path) -> None:
    model = model_file.read(file)
    next(iter(model.state["layers"].values()))["values"].fill_(float("nan"))
    model_file.write(file, model)
    for command in ("predict", "evaluate"):
        done = made.run(program, command, file, file.with_name("s.sparcl"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "the network's answer to 0 is no number" in done.stderr


def test_answers_before_one_that_is_no_number_are_said(program: Path, tmp_path: Path) -> None:
    task = make_task(torch.rand(20, 3), [0, 1] * 10, transform=Transform())
    learner = Learner(MLP(2, (3,), 4), Finetune(), Sparsifier(), classes=(0, 1), lr=0.1, batch_size=4)
    learner.learn(task)
    for parameter in learner.model.parameters():
        parameter.data *= 100
    export_device(learner, tmp_path / "f.sparcl", transform=Transform(), input_shape=(3,), classes=(0, 1))
    x = torch.rand(40, 3)
    x[21] = 3e38  # finite itself
    pack(Samples(x, torch.arange(40) % 2), [0, 1], tmp_path / "s.sparcl")
    done = made.run(program, "predict", tmp_path / "f.sparcl", tmp_path / "s.sparcl")
    assert (done.returncode, done.stderr) == (2, "sparcl-device: the network's answer to 21 is no number\n")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [f'"{k}"' for k in range(21)]


def test_an_output_that_is_an_input_is_refused(program: Path, file: Path) -> None:
    samples, link = file.with_name("s.sparcl"), file.with_name("link.sparcl")
    link.symlink_to(samples)
    photo = file.with_name("photo.jpg")
    photo.write_bytes(b"\xff\xd8\xff")
    kept = {place: place.read_bytes() for place in file.parent.iterdir()}
    for arguments, said in [
        (("learn", file, samples, "--out", samples), "holds the samples"),
        (("learn", file, samples, "--out", link), "holds the samples"),
        (("learn", file, samples, "--out", photo), "--out is there, and would be lost"),
        (("gradients", file, samples, file), "is an input"),
        (("gradients", file, samples, link), "is an input"),
        (("gradients", file, samples, "/nowhere/g"), "/nowhere/g cannot be written"),
    ]:
        done = made.run(program, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
        assert said in done.stderr
    assert {place: place.read_bytes() for place in file.parent.iterdir()} == kept


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(program: Path, file: Path) -> None:
    (folder := file.with_name("far")).mkdir()
    real, before = folder / "real.sparcl", file.read_bytes()
    file.rename(real)
    real.chmod(0o600)
    file.symlink_to("far/link.sparcl")
    (folder / "link.sparcl").symlink_to(real)
    assert made.run(program, "learn", file, file.with_name("s.sparcl"), "--steps", 1).returncode == 0
    assert file.is_symlink()
    assert real.read_bytes() != before
    assert real.stat().st_mode & 0o777 == 0o600
    (folder / ".real.sparcl.lock").symlink_to("/dev/null")  # the lock of a link is that of its file
    assert made.run(program, "learn", file, file.with_name("s.sparcl"), "--steps", 1).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_file_stays_its_owner_s(program: Path, file: Path) -> None:
    os.chown(file, 12345, 54321)
    file.chmod(0o640)
    assert made.run(program, "learn", file, file.with_name("s.sparcl"), "--steps", 1).returncode == 0
    about = file.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (12345, 54321, 0o640)


def test_a_limit_on_the_size_of_files_is_a_disk_that_is_full(program: Path, file: Path) -> None:
    before = file.read_bytes()
    command = list(map(str, (program, "learn", file, file.with_name("s.sparcl"), "--steps", 1)))
    limit: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"sparcl-device: {file} cannot be written: File too large\n")
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".*"))
