"""A handful of random kills for each backend; a hundred with `make fault`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import killing
import pytest

BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param("native", marks=pytest.mark.skipif("native" not in killing.backends(), reason="no kernels")),
    ],
)


@BACKENDS
def test_a_run_killed_again_and_again_equals_one_never_stopped(tmp_path: Path, backend: str) -> None:
    killing.prepare()
    kills, steps = 0, []
    for attempts in killing.trials(tmp_path, backend, seed=1, every="3"):
        kills, steps = kills + attempts.kills, steps + attempts.resumed_at
        if kills >= 3 and any(step > 0 for step in steps):
            break


@pytest.mark.parametrize("variant", ["icarl, sparcl", "packnet, dense", "derpp, rigl"])
def test_a_state_of_its_own_comes_back_however_the_run_ends(tmp_path: Path, variant: str) -> None:
    killing.prepare()
    options, kills = killing.VARIANTS[variant], 0
    for attempts in killing.trials(tmp_path, "reference", 2, "3", options, tuple(killing.ENDS)):
        kills += attempts.kills
        if kills >= 2:
            break


def test_a_mask_that_moves_comes_back_however_the_run_ends(tmp_path: Path) -> None:
    killing.prepare()
    attempts = next(killing.trials(tmp_path, "reference", 4, "3", (), tuple(killing.ENDS), killing.LONG))
    assert attempts.kills


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_step_saves_and_resumes_to_the_same_bits(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    import os

    killing.prepare()
    arguments, output = [*killing.RUN, "--backend", "reference"], tmp_path / "output.txt"
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    assert killing.wait(killing.start([*arguments, "--out", str(whole)], output)) == 0
    pid = killing.start([*arguments, "--out", str(out)], output)
    while not (out / "events.jsonl").exists() or b"tdm.expand" not in (out / "events.jsonl").read_bytes():
        time.sleep(0.002)
    os.kill(pid, number)
    assert killing.wait(pid) == code, output.read_text()
    step = int(killing.newest(out).name.removeprefix("step-"))
    assert 0 < step < 35
    assert killing.wait(killing.start([*arguments, "--out", str(out), "--resume"], output)) == 0
    assert killing.lasting(out) == killing.lasting(whole)
    assert [e["step"] for e in killing.events(out) if e["event"] == "run.resume"] == [step]
