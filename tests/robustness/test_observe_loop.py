"""A stream without borders that is killed, or loses its power, goes on to the bits of one that was never stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import killing
import pytest
import torch
from powerloss import Recorder, replays

from sparcl import Learner, SparCL
from sparcl.checkpoint import tree
from sparcl.checkpoint.store import open_folder
from sparcl.methods import DERpp
from sparcl.nn import ConvNet
from sparcl.streams import Stream, blurry, seq_digits, single_pass


def made(folder: Path, backend: str, every: int) -> Learner:
    """The Learner that is saved in `folder`, or a new one."""
    if (folder / "latest").exists():
        return Learner.load(folder, backend=backend, checkpoint_dir=folder, checkpoint_every=every)
    torch.manual_seed(0)
    sparsifier = SparCL(0.8, interval=5)
    options = {"backend": backend, "checkpoint_dir": folder, "checkpoint_every": every}
    return Learner(ConvNet(1, 1, 8), DERpp(30), sparsifier, lr=0.05, batch_size=10, classes=(), **options)


def observe_all(folder: Path, stream: Stream, backend: str, every: int = 3) -> Learner:
    learner = made(folder, backend, every)
    for x, y in single_pass(stream, skip=learner.observed):
        learner.observe(x, [f"digit {k}" for k in y.tolist()])
    learner.save(folder)
    return learner


def forked(folder: Path, stream: Stream, backend: str) -> int:
    """`observe_all` in a process of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            observe_all(folder, stream, backend)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


@pytest.mark.parametrize("backend", killing.backends())
def test_killed_again_and_again_it_equals_one_never_stopped(tmp_path: Path, backend: str) -> None:
    killing.prepare()
    stream = blurry(seq_digits(limit_per_class=40))
    whole = observe_all(tmp_path / "whole", stream, backend)
    folder, rng, kills, later = tmp_path / "killed", random.Random(3), 0, 0
    while True:
        pid = forked(folder, stream, backend)
        code = killing.wait_at_most(pid, rng.uniform(0.05, 0.3) * 1.2**kills)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            code = killing.wait(pid)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        later += (folder / "latest").exists()
    assert later > 0, "it was never killed after a checkpoint"
    assert tree.difference(whole.checkpoint_state(), open_folder(folder)) is None


def test_at_every_moment_of_a_power_loss_a_whole_state_is_there_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stream = tmp_path / "real", seq_digits(limit_per_class=10)
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording(monkeypatch) as steps:
        whole = observe_all(root / "saved", stream, "reference", every=4)
    found = set()
    for count, target in replays([], list(steps), tmp_path, seeds=1, writes=False):
        if (target / "saved" / "latest").exists():
            found.add(Learner.load(target / "saved", backend="reference").observed)
        else:
            assert not found, f"after operation {count} the checkpoints of before are gone"
        shutil.rmtree(target)
    assert found == {40, 80, whole.observed}
    assert whole.observed == 80 + 20
