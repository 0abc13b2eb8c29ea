"""`sparcl run --resume`: what is refused, what is said, what is kept."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparcl import streams
from sparcl.checkpoint import Store, files
from sparcl.errors import DataWarning
from sparcl.learner import learner
from sparcl.main import _main
from sparcl.run import resume
from sparcl.run.experiment import Experiment
from sparcl.run.lock import LOCK
from sparcl.run.progress import Progress

RUN = ["run", "seq-digits", "--limit-per-class", "40", "--epochs", "1", "--width", "4", "--threads", "1"]
ARGUMENTS = [*RUN, "--backend", "reference", "--checkpoint-every", "2"]


class DiedError(Exception):
    """Stands for a process that dies at a moment chosen by a test."""


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends, as if killed, after `step` steps."""
    real = learner.Learner._step

    def limited(self: learner.Learner, position: Any) -> None:
        if self.steps == step:
            raise DiedError
        real(self, position)

    monkeypatch.setattr(learner.Learner, "_step", limited)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that died after step 5; its newest checkpoint is of step 4."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        die_at(5, patch)
        with pytest.raises(DiedError):
            _main([*ARGUMENTS, "--out", str(out)])
    assert (out / "checkpoint" / "latest").read_text() == "step-4\n"
    return out


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--lr", "0.5"], "lr is 0.5 here, but"),
        (["--method", "er"], "method is 'er' here, but 'derpp'"),
        (["--seed", "3"], "seed is 3 here, but 0"),
        (["--threads", "2"], "threads is 2 here, but 1"),
        (["--limit-per-class", "39"], "limit_per_class is 39 here, but 40"),
    ],
)
def test_a_changed_configuration_is_refused_by_name(
    killed: Path, changed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in killed.rglob("*"))
    capsys.readouterr()
    assert _main([*ARGUMENTS, *changed, "--out", str(killed), "--resume"]) == 2
    assert said in one_line(capsys)
    assert sorted(p.name for p in killed.rglob("*")) == before


def test_a_run_of_an_earlier_version_that_had_fewer_settings_goes_on(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(killed / "checkpoint")
    loaded = store.load()
    assert loaded is not None
    part = loaded.state["run"]
    optional = {f.name: f.default for f in dataclasses.fields(Experiment) if f.name not in ("threads", "backend")}
    absent = [name for name, default in optional.items() if part["experiment"][name] in (default, {}, [])]
    assert {"activations", "average", "latents", "fitted", "pace", "layer_choice"} <= set(absent)
    for name in absent:
        del part["experiment"][name]
    store.save(4, loaded.state)
    changed = [*ARGUMENTS, "--warmup", "0.1", "--out", str(killed), "--resume"]
    assert _main(changed) == 2
    assert "warmup is 0.1 here, but None in the checkpoint" in " ".join(capsys.readouterr().err.split())
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0
    assert _main([*ARGUMENTS, "--out", str(tmp_path / "whole")]) == 0
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_other_data_is_refused(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = streams.digits.read_digits

    def brighter() -> Any:
        arrays = real()
        arrays.train_inputs[0, 0, 0, 0] ^= 1
        return arrays

    monkeypatch.setattr(streams.digits, "read_digits", brighter)
    capsys.readouterr()
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 2
    assert "cannot resume with other data" in one_line(capsys)


def test_events_are_cut_back_and_every_resume_is_noted(killed: Path) -> None:
    kept = (killed / "events.jsonl").read_bytes()
    with (killed / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "epoch.end", "task": 77}\n{"event": "torn')
    for _ in range(2):  # the first resume dies before its first checkpoint
        with pytest.MonkeyPatch.context() as patch:
            die_at(5, patch)
            with pytest.raises(DiedError):
                _main([*ARGUMENTS, "--out", str(killed), "--resume"])
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0
    found = events(killed)
    assert [e["step"] for e in found if e["event"] == "run.resume"] == [4, 4, 4]
    assert not [e for e in found if e.get("task") == 77]
    assert found[-1]["event"] == "run.end"
    assert kept.startswith(b"".join((killed / "events.jsonl").read_bytes().splitlines(keepends=True)[:1]))


def test_time_left_counts_no_task_that_was_learned_before_a_resume_between_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    words = ["run", "seq-digits", "--limit-per-class", "40", "--steps", "4", "--width", "4", "--threads", "1"]
    arguments = [*words, "--backend", "reference", "--checkpoint-every", "0.001s", "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        die_at(8, patch)
        with pytest.raises(DiedError):
            _main(arguments)
    resumed = Progress.resume_at
    monkeypatch.setattr(Progress, "resume_at", lambda self, done: [told.append(done), resumed(self, done)])
    die_at(9, monkeypatch)
    with pytest.raises(DiedError):
        _main([*arguments, "--resume"])
    assert told == [2.0]


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_leads_to_the_same_end(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (killed / "checkpoint" / "step-4" / files.TENSORS).write_bytes(b"damaged")
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step-4 is damaged" in said
    assert "using step-2" in said
    (resumed,) = [e for e in events(killed) if e["event"] == "run.resume"]
    assert resumed["step"] == 2
    assert "step-4" in resumed["damaged"][0]
    assert _main([*ARGUMENTS, "--out", str(tmp_path / "whole")]) == 0
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_without_a_checkpoint_it_starts_from_the_beginning_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert _main([*ARGUMENTS, "--out", str(out), "--resume"]) == 0
    assert "starting from the beginning" in " ".join(capsys.readouterr().out.split())
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert _main([*ARGUMENTS, "--out", str(out), "--resume"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert _main([*ARGUMENTS, "--out", str(out), "--resume", "--lr", "0.5"]) == 2  # finished, but another run
    assert "lr is 0.5 here" in one_line(capsys)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert _main([*ARGUMENTS, "--out", str(out)]) == 2
    assert "--resume" in one_line(capsys)


def test_a_second_process_is_refused_in_one_line_and_leaves_the_first_alone(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in killed.rglob("*"))
    capsys.readouterr()
    with (killed / LOCK).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 2
        assert "in use by another process" in one_line(capsys)
    assert sorted(p.name for p in killed.rglob("*")) == before
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0  # the lock went with its holder


def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = learner.Learner._assemble

    def poisoned(self: learner.Learner, ids: torch.Tensor) -> Any:
        batch = real(self, ids)
        if self.steps == 7:
            batch.inputs[0] = float("nan")
        return batch

    monkeypatch.setattr(learner.Learner, "_assemble", poisoned)
    capsys.readouterr()
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 2
    line = one_line(capsys)
    assert all(word in line for word in ("NaN", "task ", "epoch ", "step "))
    loaded = Store(killed / "checkpoint").load()
    assert loaded is not None
    assert (loaded.name, loaded.damaged) == ("step-6", ())
    monkeypatch.undo()
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0


def test_where_no_checkpoint_can_be_used_the_run_is_refused(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step-2", "step-4"):
        (killed / "checkpoint" / name / files.MANIFEST).write_bytes(b"{")
    capsys.readouterr()
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 2
    told = one_line(capsys)
    assert "can be used" in told
    assert f"to begin anew, choose another --out, or remove {killed / 'checkpoint'}" in told
    shutil.rmtree(killed / "checkpoint")
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert _main([*RUN, "--method", "icarl", "--sparsifier", "dense", "--out", str(out)]) == 0
    return out


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGES = {
    "no weights": lambda run: (run / "model.safetensors").unlink(),
    "weights cut off": lambda run: cut(run / "model.safetensors"),
    "no header": lambda run: (run / "model.safetensors").write_bytes(b"\xff" * 9),
    "no means": lambda run: (run / "answers.safetensors").unlink(),
    "result cut off": lambda run: cut(run / "result.json"),
    "no object": lambda run: (run / "result.json").write_text("[]"),
    "an empty result": lambda run: (run / "result.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_what_a_finished_run_has_lost_is_written_again_from_its_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run)
    command = [*RUN, "--method", "icarl", "--sparsifier", "dense", "--out", str(run), "--resume"]
    capsys.readouterr()
    assert _main(command) == 0
    assert "it is written again from the checkpoint" in " ".join(capsys.readouterr().out.split())
    for name in ("model.safetensors", "answers.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    assert {k: ours[k] for k in SAME} == {k: theirs[k] for k in SAME}
    assert _main(command) == 0
    assert "nothing to do" in capsys.readouterr().out

    damage(run)
    kept = (run / "model.safetensors").exists()
    shutil.rmtree(run / "checkpoint")
    assert _main(command) == (2 if kept else 0), "one that holds its records alone lacks nothing"
    if kept:
        assert "there is no checkpoint to write it again from" in one_line(capsys)
    assert _main(["export", str(run), "--format", "device", "--out", str(tmp_path / "m")]) == 2
    told = one_line(capsys)
    assert "has no checkpoint any more" in told
    assert f"run it again: sparcl run --config {run / 'config.toml'} --out DIR" in told


def test_a_run_whose_checkpoints_are_damaged_is_exported_for_a_device_from_the_one_before_or_not_at_all(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", str(killed), "--format", "device", "--out", str(tmp_path / "m.sparcl")]
    cut(killed / "checkpoint" / "step-4" / files.STATE)
    with pytest.warns(DataWarning, match="state.json has .*; using step-2"):
        assert _main(export) == 0
    capsys.readouterr()
    cut(killed / "checkpoint" / "step-2" / files.STATE)
    assert _main(export) == 2
    assert f"run it again: sparcl run --config {killed / 'config.toml'} --out DIR" in one_line(capsys)


SAME = ("model_sha256", "class_il", "task_il", "accuracy_matrix", "flops", "samples", "sparsity", "data", "model")


@pytest.mark.parametrize("every", ["0", "0s", "often", "-5", "60m"])
def test_a_wrong_interval_is_refused_and_leaves_nothing(
    tmp_path: Path, every: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*RUN, "--checkpoint-every", every, "--out", str(tmp_path / "out")]
    assert _main(arguments) == 2
    assert "60s" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_the_last_event_is_the_same_where_only_the_result_was_lost(tmp_path: Path) -> None:
    """Killed between the last checkpoint and result.json (found by `make fault`)."""
    out = tmp_path / "run"
    assert _main([*ARGUMENTS, "--out", str(out)]) == 0
    before = [{**e, "seconds": 0} for e in events(out)]
    (out / "result.json").unlink()
    assert _main([*ARGUMENTS, "--out", str(out), "--resume"]) == 0
    after = [{**e, "seconds": 0} for e in events(out) if e["event"] != "run.resume"]
    assert after == before
    assert before[-1]["event"] == "run.end"


def said_at_resume(killed: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert _main([*ARGUMENTS, "--out", str(killed), "--resume"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("name", "called"), list(resume.COMPUTED_WITH.items()))
def test_whatever_decides_the_bits_and_has_changed_is_said(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, called: str
) -> None:
    real = resume.computed_with
    monkeypatch.setattr(resume, "computed_with", lambda: {**real(), name: "another"})
    said = said_at_resume(killed, capsys)
    assert f"{called} {real()[name]} -> another: the last bits may differ" in said
    (noted,) = [e for e in events(killed) if e["event"] == "run.resume"]
    assert set(noted["computed_with"]) == set(resume.COMPUTED_WITH)
    assert set(resume.COMPUTED_WITH) < set(json.loads((killed / "result.json").read_text())["environment"])


def test_another_instruction_set_of_pytorch_is_said(killed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparcl", *ARGUMENTS, "--out", str(killed), "--resume"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        assert "PyTorch's instruction set" in done.stdout


@pytest.mark.parametrize("kind", ["none", "shortened", "edited", "removed"])
def test_events_that_are_not_those_the_checkpoint_knew_are_noticed(
    killed: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    file = killed / "events.jsonl"
    content = file.read_bytes()
    if kind == "shortened":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "edited":
        file.write_bytes(content.replace(b'"task": 0', b'"task": 9', 1))
    elif kind == "removed":
        file.unlink()
    said = said_at_resume(killed, capsys)
    (noted,) = [e for e in events(killed) if e["event"] == "run.resume"]
    assert noted["events_changed"] == (kind != "none")
    assert ("was shortened or edited" in said) == (kind != "none")
