"""`info` and `bench` of the program, one `learn` at a time, and how it stops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import made
import pytest

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.errors import ConfigError
from sparcl.methods import Finetune
from sparcl.nn import ConvNet


def long_run(program: Path, file: Path, *more: object, **options: object) -> subprocess.Popen[str]:
    """A `learn` that would not end by itself; returns once it is under way."""
    command = [program, "learn", file, file.with_name("s.sparcl"), "--max-seconds", "60", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([str(part) for part in command], **{**pipes, **options})
    assert process.stdout is not None
    while "epoch" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    return process


def test_info_says_all(program: Path, file: Path) -> None:
    done = made.run(program, "info", file)
    learner = Learner.load(file, backend="reference")
    buffer = learner.method.buffer
    assert buffer is not None
    assert buffer.logits is not None
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    for layer in learner.sparsifier.layers:
        shape, active = list(layer.shape), layer.index.numel()
        density = f"density {active / math.prod(shape):.4f}, {active} of {math.prod(shape)} weights"
        assert f'"{layer.name}" convolution {shape} {density}' in words
    held = buffer.inputs.nbytes + buffer.labels.nbytes + buffer.logits.nbytes
    assert f"buffer 12 of 12 samples, {held} bytes" in words
    assert f"tasks 1 learned, {learner.steps} steps" in words
    assert '"name":"derpp"' in words
    assert "this build reads" in words


@pytest.mark.parametrize("batch", [None, 5])
def test_bench_measures_and_writes_nothing(program: Path, file: Path, batch: int | None) -> None:
    before = file.read_bytes()
    more = [] if batch is None else ["--batch", batch]
    done = made.run(program, "bench", file, "--threads", 1, "--steps", 3, "--json", *more)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["threads"], told["batch"], told["steps"]) == (1, batch or 8, 3)
    for kind in ("training", "inference"):
        part = told[kind]
        assert part["ms"] > 0
        assert part["samples_per_second"] == pytest.approx(1000 * told["batch"] / part["ms"], rel=0.01)
        assert part["peak_bytes"] > 1e6
        assert part["peak_bytes"] < 30e6 or made.SANITIZED
    assert told["training"]["ms"] > told["inference"]["ms"]
    text = made.run(program, "bench", file, "--steps", 1).stdout
    assert "training step" in text
    assert "samples/s" in text
    assert file.read_bytes() == before
    assert sorted(place.name for place in file.parent.iterdir()) == ["m.sparcl", "s.sparcl"]


def test_bench_refuses_in_one_line(program: Path, file: Path) -> None:
    for arguments, said in [
        ((file, "--steps", 0), "--steps 0 is not allowed"),
        ((file, "--batch", 0), "--batch 0 is not allowed"),
        ((file, "--epochs", 1), "bench has no option --epochs; allowed: --threads --batch --steps --json --help"),
        ((file, "--steps", 1 << 21), "--steps of bench must be at most 1048576"),
        ((file, "--batch", 65536, "--steps", 1000000), "too large for this network"),
        ((file.with_name("s.sparcl"),), "is no sparcl model"),
    ]:
        done = made.run(program, "bench", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
        assert said in done.stderr


def test_a_second_learn_on_a_file_is_refused(program: Path, file: Path) -> None:
    process = long_run(program, file, "--save-every", 0)
    try:
        for more in ([], ["--out", file]):
            done = made.run(program, "learn", file, file.with_name("s.sparcl"), *more)
            assert (done.returncode, done.stdout) == (2, "")
            said = f"sparcl-device: {file} is being learned by another process ({process.pid})\n"
            assert done.stderr == said
        assert made.run(program, "info", file).returncode == 0
        other = file.with_name("other.sparcl")
        done = made.run(program, "learn", file, file.with_name("s.sparcl"), "--new-task", "--steps", 1, "--out", other)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        process.kill()
        process.communicate()
    assert file.with_name(".m.sparcl.lock").exists()  # nobody holds it any more
    done = made.run(program, "learn", file, file.with_name("s.sparcl"), "--new-task", "--steps", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(place.name for place in file.parent.iterdir()) == ["m.sparcl", "other.sparcl", "s.sparcl"]


def test_what_lies_in_the_place_of_the_lock_is_not_touched(program: Path, file: Path) -> None:
    lock, precious = file.with_name(".m.sparcl.lock"), file.with_name("precious")
    precious.write_text("all")
    for make in (lambda: lock.symlink_to(precious), lambda: lock.hardlink_to(precious), lambda: os.mkfifo(lock)):
        make()
        done = made.run(program, "learn", file, file.with_name("s.sparcl"), "--steps", 1)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert precious.read_text() == "all"
        lock.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_so(program: Path, file: Path, number: signal.Signals) -> None:
    process = long_run(program, file)
    process.send_signal(number)
    told, errors = process.communicate()
    assert (process.returncode, errors) == (128 + number, "")
    assert "everything is saved, the same command goes on" in told
    done = int(told.split("stopped after step ")[1].split(";")[0])
    assert model_file.read(file).state["learner"]["position"]["done"] == done
    assert not list(file.parent.glob(".*"))


def test_saves_are_of_the_seconds(program: Path, file: Path) -> None:
    begun = time.monotonic()
    options = ("--max-seconds", 2, "--save-every", 0, "--threads", 1)
    assert made.run(program, "learn", file, file.with_name("s.sparcl"), *options).returncode == 0
    assert time.monotonic() - begun < 6  # steps alone take a fraction of the time that their saves take


def test_seconds_for_less_than_half_a_step_are_refused(program: Path, tmp_path: Path) -> None:
    """As in Python; a step of this network takes longer than two thousandths of a second."""
    task, *_ = made.stream()
    learner = Learner(ConvNet(4, 3, 128), Finetune(), lr=0.01, batch_size=48, seconds=0.001)
    file, samples = made.export(learner, tmp_path / "m.sparcl", task), made.packed(task, tmp_path / "s.sparcl")
    with pytest.raises(ConfigError, match=r"is too little: one step takes .*; use .* or more"):
        learner.learn(task)
    before = file.read_bytes()
    out = ("--out", tmp_path / "out.sparcl")
    for options in ((), ("--max-seconds", 0.001), (*out, "--save-every", 0)):
        done = made.run(program, "learn", file, samples, "--threads", 1, *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert "--max-seconds 0.001 is too little: one step takes " in done.stderr
        assert file.read_bytes() == before
        assert sorted(place.name for place in tmp_path.iterdir()) == ["m.sparcl", "s.sparcl"]
    enough = float(done.stderr.split("use ")[1].split()[0])
    done = made.run(program, "learn", file, samples, "--max-seconds", 20 * enough)
    assert (done.returncode, done.stderr) == (0, "")
    again = Learner.load(file, backend="reference")
    assert again.steps > 0


def test_hangups_that_are_ignored_stay_so(program: Path, file: Path) -> None:
    process = long_run(program, file, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143


def test_a_reader_that_goes_away_stops_it_saved(program: Path, file: Path) -> None:
    process = long_run(program, file)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert "the output was closed by its reader; everything is saved" in process.stderr.read()
    process.stderr.close()
    assert model_file.read(file).state["learner"]["position"]["done"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(program: Path, file: Path) -> None:
    before = file.read_bytes()
    file.parent.chmod(0o555)
    for folder in (file.parent, *file.parent.parents):
        if folder.stat().st_uid == 0 and folder.name:
            folder.chmod(folder.stat().st_mode | 0o055)
    copy = Path(f"/tmp/sparcl-device-{os.getpid()}")  # the project's own folder may be closed to others
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    try:
        command = [str(part) for part in (copy, "learn", file, file.with_name("s.sparcl"), "--steps", "2")]
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        done = subprocess.run(command, **nobody, capture_output=True, text=True, check=False)
    finally:
        copy.unlink()
        file.parent.chmod(0o755)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "m.sparcl cannot be written: Permission denied" in done.stderr
    assert file.read_bytes() == before
