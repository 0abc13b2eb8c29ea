"""A full disk: whichever write fails, the command stops with one line and exit code 2; the last checkpoint loads."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparcl.checkpoint import Store
from sparcl.errors import CheckpointError
from sparcl.main import _main

RUN = ["run", "seq-digits", "--limit-per-class", "40", "--epochs", "1", "--width", "4", "--threads", "1"]
ARGUMENTS = [*RUN, "--backend", "reference", "--checkpoint-every", "2"]


class FailingDisk:
    """From the `allowed`-th operation below a folder on, every one fails: writes take half of the bytes first."""

    def __init__(self, root: Path, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.left = root, allowed
        self.inside: set[int] = set()
        real_open, real_write, real_fsync, real_mkdir = os.open, os.write, os.fsync, os.mkdir

        def opened(path: object, flags: int, *rest: object, **named: object) -> int:
            below = str(path).startswith(str(root))
            if below and flags & os.O_CREAT:
                self._spend()
            descriptor = real_open(path, flags, *rest, **named)  # type: ignore[call-overload]
            self.inside.discard(descriptor)
            if below:
                self.inside.add(descriptor)
            return int(descriptor)

        def written(descriptor: int, data: bytes) -> int:
            if descriptor in self.inside and self._full():
                if len(data) > 1:
                    self.left = 0
                    return real_write(descriptor, data[: len(data) // 2])
                self._spend()
            return real_write(descriptor, data)

        def synced(descriptor: int) -> None:
            if descriptor in self.inside:
                self._spend()
            real_fsync(descriptor)

        def made(path: object, *rest: object, **named: object) -> None:
            if str(path).startswith(str(root)):
                self._spend()
            real_mkdir(path, *rest, **named)  # type: ignore[arg-type]

        for name, stand_in in (("open", opened), ("write", written), ("fsync", synced), ("mkdir", made)):
            monkeypatch.setattr(os, name, stand_in)

    def _full(self) -> bool:
        self.left -= 1
        return self.left <= 0

    def _spend(self) -> None:
        if self._full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_with(root: Path, allowed: int, arguments: list[str]) -> tuple[int, int]:
    """Exit code and operations left over."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(root, allowed, patch)
        code = _main(arguments)
    return code, disk.left


def test_whichever_write_fails_the_run_says_so_in_one_line_and_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plenty = 10**6
    run_with(tmp_path, plenty, [*ARGUMENTS, "--out", str(tmp_path / "first")])  # what `auto` measures is written once
    code, left = run_with(tmp_path, plenty, [*ARGUMENTS, "--out", str(tmp_path / "whole")])
    assert code == 0
    needed = plenty - left
    capsys.readouterr()
    saved_before = 0
    for allowed in sorted({1, 2, 3, 4, 5, 8, needed // 3, needed // 2, needed - 9, needed - 1}):
        out = tmp_path / f"full-{allowed}"
        code, _ = run_with(tmp_path, allowed, [*ARGUMENTS, "--out", str(out)])
        told = capsys.readouterr()
        if allowed == needed - 1:  # the page's own file: the run is none the worse
            assert code == 0
            assert "no report.html: cannot write" in told.out + told.err
            assert "No space left on device" in told.out + told.err
            assert (out / "result.json").exists()
            assert not (out / "report.html").exists()
            continue
        lines = told.err.splitlines()
        assert code == 2, allowed
        assert len(lines) == 1, lines
        assert "No space left on device" in lines[0]
        if not out.exists():
            continue  # nothing was worth keeping
        if (out / "result.json").exists():  # all is there but the page, which `sparcl report` makes
            assert not (out / "report.html").exists()
            continue
        loaded = Store(out / "checkpoint").load()
        assert loaded is not None
        assert loaded.damaged == ()
        saved_before += 1
        assert _main([*ARGUMENTS, "--out", str(out), "--resume"]) == 0
        weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
        assert weights[0] == weights[1]
        capsys.readouterr()
    assert saved_before >= 3


def test_every_write_of_a_save_in_turn_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoint")
    store.save(1, {"weights": torch.ones(3)})
    allowed = 0
    while True:
        allowed += 1
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(tmp_path, allowed, patch)
            if not refused(lambda: Store(tmp_path / "checkpoint").save(2, {"weights": torch.zeros(3)})):
                break
        loaded = Store(tmp_path / "checkpoint").load()
        assert loaded is not None
        assert loaded.damaged == ()
        assert loaded.name in ("step-1", "step-2")  # 2: only the last sync failed
        assert not [p.name for p in (tmp_path / "checkpoint").iterdir() if p.name.startswith(".")], "leftovers"
        if loaded.name == "step-2":
            Store(tmp_path / "checkpoint").save(1, {"weights": torch.ones(3)})
    assert allowed > 12


def refused(save: Callable[[], object]) -> bool:
    try:
        save()
    except CheckpointError as error:
        return "No space left on device" in str(error)
    return False
