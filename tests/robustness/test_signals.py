"""Signals while data is read, a terminal that closes, output that nobody reads: the right code and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
from made_data import picture, tree, write_folder

from sparcl.errors import Stopped
from sparcl.main import _main
from sparcl.run.signals import StopRequest
from sparcl.streams import cache, images, safe_pickle

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


def test_a_stop_is_no_error_that_anything_catches() -> None:
    assert not issubclass(Stopped, Exception)


@SIGNALS
@pytest.mark.parametrize("place", ["decoding", "cache"])
def test_a_signal_while_data_is_read_ends_with_its_code_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, place: str
) -> None:
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    data = write_folder(tmp_path / "data", tree())
    run = ["run", "folder", "--data", str(data), "--epochs", "1", "--width", "4", "--out", str(tmp_path / "out")]
    if place == "cache":
        cache.cached("folder None", data, ("train", "test"), lambda: images_of(data))
        monkeypatch.setattr(np, "load", interrupted(number, np.load))
    else:
        monkeypatch.setattr(images, "_to_rgb", interrupted(number, images._to_rgb))
    assert _main(run) == 128 + number
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out").exists()


def images_of(data: Path) -> Any:
    from sparcl.streams.folder import read_tree

    return read_tree(data, None, None)


def interrupted(number: int, real: Any) -> Any:
    """A function in which a signal arrives."""

    def call(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # Python looks for signals between two operations
        return real(*arguments, **named)

    return call


def test_a_signal_that_a_finalizer_swallowed_is_obeyed_at_the_next_place() -> None:
    with StopRequest() as stop:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        except Stopped:
            pass  # as Python does where a finalizer raises
        with pytest.raises(Stopped):
            stop.check()


@pytest.mark.parametrize("decode", [images.decode, safe_pickle.load])
def test_memory_that_ran_out_is_no_damage(monkeypatch: pytest.MonkeyPatch, decode: Any) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", none)
    monkeypatch.setattr(safe_pickle.pickletools, "genops", none)
    with pytest.raises(MemoryError):
        decode(picture(), "x")


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def run_into(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sparcl", *killing.RUN, "--backend", "reference", "--out", str(out), *options]


def test_output_that_nobody_reads_ends_the_run_with_a_checkpoint_and_a_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        run_into(out, "--epochs", "3000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline()
        run.stdout.close()
        run.stdout = None
        error = run.communicate(timeout=100)[1]
    assert run.returncode == 141
    (line,) = error.splitlines()
    saved = killing.newest(out).name
    assert f"{saved} is saved" in line
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("command", [["info"], ["report", "RUN"], ["--help"]])
def test_other_commands_end_with_a_line_as_well(tmp_path: Path, command: list[str]) -> None:
    out = tmp_path / "run"
    if "RUN" in command:
        killing.prepare()
        assert _main([*killing.RUN, "--backend", "reference", "--out", str(out)]) == 0
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [str(out) if word == "RUN" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "sparcl", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100
    )
    os.close(writer)
    assert done.returncode == 141, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    import pty

    out = tmp_path / "run"
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("this system gives no terminals")
    run = subprocess.Popen(
        run_into(out, "--epochs", "3000"), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    while not (out / "events.jsonl").exists() or b"tdm.update" not in (out / "events.jsonl").read_bytes():
        os.set_blocking(ours, False)
        try:
            os.read(ours, 1 << 16)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(ours)
    os.kill(run.pid, signal.SIGHUP)
    time.sleep(0.005)
    os.kill(run.pid, signal.SIGHUP)  # the kernel's, after the shell's
    assert run.wait(timeout=100) == 129
    assert killing.newest(out).name.startswith("step-")
