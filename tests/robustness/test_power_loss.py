"""Power loss: whatever prefix of a save reached the disk, less what was not synced, a whole checkpoint is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from powerloss import Recorder, Step, replays

from sparcl.checkpoint import State, Store
from sparcl.checkpoint import disk as durable
from sparcl.main import _main


def made(step: int) -> State:
    return {"step": step, "weights": torch.arange(6.0) + step, "nested": [{"mask": torch.ones(3, dtype=torch.bool)}]}


def saves(root: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> list[list[Step]]:
    """Save at each of `steps`; the recorded operations of each save."""
    recorder, store, found = Recorder(root), Store(root / "checkpoint"), []
    for step in steps:
        with recorder.recording(monkeypatch):
            store.save(step, made(step))
        found.append(list(recorder.steps))
        recorder.steps.clear()
    return found


def test_every_prefix_of_a_save_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "real"
    root.mkdir()
    # the same step twice (a task's end), and enough of them that old checkpoints are removed
    recorded = saves(root, monkeypatch, [1, 2, 3, 3, 4])
    assert {step[0] for step in recorded[2]} == {"create", "write", "sync", "rename", "unlink", "mkdir", "rmdir"}
    values = [1, 2, 3, 3, 4]
    seen: set[int] = set()
    for this in range(1, len(recorded)):
        before = [step for save in recorded[:this] for step in save]
        for count, target in replays(before, recorded[this], tmp_path, seeds=4):
            loaded = Store(target / "checkpoint").load()
            assert loaded is not None, f"save {this}, after operation {count}: no checkpoint"
            step = loaded.state["step"]
            assert step in (values[this - 1], values[this])
            assert torch.equal(loaded.state["weights"], made(step)["weights"])
            if count == len(recorded[this]):
                assert step == values[this], "a save that returned is safe"
                assert loaded.damaged == ()
            seen.add(step)
            Store(target / "checkpoint", loaded.name).save(9, made(9))  # what was cut off does not stand in the way
            again = Store(target / "checkpoint").load()
            assert again is not None
            assert again.state["step"] == 9
            assert sum(p.name.startswith(".") for p in (target / "checkpoint").iterdir()) == 0, "leftovers stay"
            shutil.rmtree(target)
    assert seen == {1, 2, 3, 4}


def test_the_first_save_leaves_nothing_or_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "real"
    root.mkdir()
    (first,) = saves(root, monkeypatch, [1])
    outcomes = set()
    for _, target in replays([], first, tmp_path, seeds=4):
        store = Store(target / "checkpoint")
        loaded = store.load() if not store.empty else None
        outcomes.add(None if loaded is None else loaded.state["step"])
        shutil.rmtree(target)
    assert outcomes == {None, 1}


@pytest.mark.parametrize("left_out", ["file", "folder"])
def test_the_replay_would_see_a_missing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    root = tmp_path / "real"
    root.mkdir()
    recorded = saves(root, monkeypatch, [1, 2])
    forgotten = [
        step
        for step in recorded[1]
        if step[0] != "sync" or (Path(step[1]).suffix in (".json", ".safetensors", ".tmp")) != (left_out == "file")
    ]
    found = []
    for count, target in replays(recorded[0], forgotten, tmp_path, seeds=0):
        try:
            loaded = Store(target / "checkpoint").load()
        except Exception:
            loaded = None
        safe = loaded is not None and (count < len(forgotten) or loaded.state["step"] == 2) and not loaded.damaged
        found.append(safe)
        shutil.rmtree(target)
    assert not all(found)


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "real"
    root.mkdir()
    recorder = Recorder(root)
    with recorder.recording(monkeypatch):
        durable.replace_file(root / "result.json", [b"old"])
        durable.sync_folder(root)
        before = list(recorder.steps)
        durable.replace_file(root / "result.json", [b"new, and longer"])
    contents = set()
    for _, target in replays(before, recorder.steps[len(before) :], tmp_path, seeds=4):
        contents.add((target / "result.json").read_bytes())
        shutil.rmtree(target)
    assert contents == {b"old", b"new, and longer"}


RUN = ["run", "seq-digits", "--limit-per-class", "12", "--epochs", "1", "--width", "4", "--threads", "1"]
ARGUMENTS = [*RUN, "--batch-size", "4", "--backend", "reference", "--checkpoint-every", "5"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """Every file operation of a whole run, and of one resumed after its result was lost."""
    root = tmp_path_factory.mktemp("real")
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch, recorder.recording(patch) as recorded:
        assert _main([*ARGUMENTS, "--out", str(root / "runs" / "run")]) == 0
        durable.os.unlink(root / "runs" / "run" / "result.json")
        assert _main([*ARGUMENTS, "--out", str(root / "runs" / "run"), "--resume"]) == 0
    return recorded


def survives(run: Path) -> bool:
    """Whether a run directory is one to go on from: `latest` names a whole checkpoint, and the events that it counts
    are there; a result is whole, and so is the model beside it."""
    latest = run / "checkpoint" / "latest"
    if latest.exists():
        name = latest.read_text().strip()
        loaded = Store(run / "checkpoint").load()
        if loaded is None or loaded.name != name or loaded.damaged:
            return False
        part = loaded.state["run"]
        events = (run / "events.jsonl").read_bytes()[: part["events"]] if (run / "events.jsonl").exists() else b""
        if len(events) != part["events"] or hashlib.sha256(events).hexdigest() != part["events_sha256"]:
            return False
    if (run / "result.json").exists():
        json.loads((run / "result.json").read_text())
        safetensors.torch.load_file(run / "model.safetensors")
        return latest.exists()
    return True


def first_saved(steps: list[Step]) -> int:
    """After how many operations a checkpoint is safe: from there on there is always one."""
    named = next(i for i, step in enumerate(steps) if step[0] == "rename" and step[2].endswith("checkpoint/latest"))
    return next(i for i in range(named, len(steps)) if steps[i] == ("sync", "runs/run/checkpoint")) + 1


def lost(steps: list[Step], safe_from: int, folder: Path) -> Iterator[int]:
    """Prefixes after which a power cut leaves something that cannot be gone on from."""
    for count, target in replays([], steps, folder, seeds=1, writes=False):
        run = target / "runs" / "run"
        try:
            fine = survives(run) and (count < safe_from or (run / "checkpoint" / "latest").exists())
        except Exception:
            fine = False
        if not fine:
            yield count
        shutil.rmtree(target)


def test_at_every_moment_of_a_run_latest_names_a_whole_checkpoint_with_its_events(
    tmp_path: Path, steps: list[Step]
) -> None:
    assert sum(step[0] == "rename" and step[2].endswith("latest") for step in steps) > 5
    assert any(step[0] == "truncate" and step[1].endswith("events.jsonl") for step in steps)
    assert list(lost(steps, first_saved(steps), tmp_path)) == []


@pytest.mark.parametrize("forgotten", ["runs/run/events.jsonl", "runs/run", "runs", "runs/run/checkpoint"])
def test_the_replay_of_a_run_would_see_a_missing_sync(tmp_path: Path, steps: list[Step], forgotten: str) -> None:
    left = [step for step in steps if step != ("sync", forgotten)]
    safe_from = first_saved(steps) if forgotten != "runs/run/checkpoint" else len(left)
    assert next(lost(left, safe_from, tmp_path), None) is not None
