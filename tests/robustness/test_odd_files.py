"""Links, named pipes, devices and huge files where a run, a report or a configuration looks for its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparcl.errors import ConfigError
from sparcl.main import _main
from sparcl.outputs import FOLDERS_OF_RUN, OF_RUN
from sparcl.report import load
from sparcl.run.launch import Job, Local, Outcome
from sparcl.run.observers import SampleTrace
from sparcl.run.trackers import CSV

RUN = ["run", "seq-digits", "--limit-per-class", "40", "--epochs", "1", "--width", "4", "--threads", "1"]
ARGUMENTS = [*RUN, "--backend", "reference", "--checkpoint-every", "2"]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A file that is waited for is a failure, not the end of the tests."""

    def too_long(*_: object) -> None:
        raise TimeoutError("a file was waited for")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert _main([*ARGUMENTS, "--out", str(out)]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert _main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "theirs").write_text("theirs\n")
    return folder


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("theirs\n")
    path.symlink_to(target)


ODD = pytest.mark.parametrize("make", [pipe, endless, link, Path.mkdir])


@ODD
@pytest.mark.parametrize("name", [*OF_RUN])
def test_a_run_directory_with_an_odd_file_is_refused_in_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str, make: Callable[[Path], None]
) -> None:
    (finished / name).unlink(missing_ok=True)
    make(finished / name)
    kept = sorted(str(p) for p in finished.rglob("*"))
    line = refusal(capsys, *ARGUMENTS, "--out", str(finished), "--resume")
    assert f"{name} is not a regular file" in line
    assert sorted(str(p) for p in finished.rglob("*")) == kept
    if make is link:
        assert (finished / "target").read_text() == "theirs\n"


@pytest.mark.parametrize("name", FOLDERS_OF_RUN)
def test_a_run_directory_with_an_odd_folder_is_refused_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if (finished / name).exists():
        (finished / name).rename(tmp_path / "before")
    (finished / name).symlink_to(outside(tmp_path))
    assert f"{name} is not a folder" in refusal(capsys, *ARGUMENTS, "--out", str(finished), "--resume")
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["theirs"]


@pytest.mark.parametrize("make", [pipe, link])
@pytest.mark.parametrize("name", ["samples.json", "report.html", "README.md"])
def test_what_is_put_into_a_run_directory_meanwhile_is_not_waited_for_or_written_through(
    tmp_path: Path, name: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, begin = tmp_path / "run", SampleTrace.__init__

    def meanwhile(*arguments: Any) -> None:
        make(out / name)
        begin(*arguments)

    monkeypatch.setattr(SampleTrace, "__init__", meanwhile)
    assert _main([*ARGUMENTS, "--epochs", "10", "--out", str(out)]) == 0
    if make is link:
        assert (out / "target").read_text() == "theirs\n"
    assert (out / name).is_file() == ((make, name) != (pipe, "report.html"))


@pytest.mark.parametrize("make", [pipe, link, Path.mkdir])
def test_a_report_is_not_written_through_a_runs_page(
    finished: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    page = finished / "report.html"
    page.unlink()
    make(page)
    assert f"cannot write {page}" in refusal(capsys, "report", str(finished), "--format", "html", "--out", str(page))
    if make is link:
        assert (finished / "target").read_text() == "theirs\n"


def test_a_hard_link_is_not_written_through(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "result.json").unlink()
    for name in (".lock", "events.jsonl"):
        kept = (finished / name).read_bytes()
        (finished / "other").hardlink_to(finished / name)
        assert "hard link" in refusal(capsys, *ARGUMENTS, "--out", str(finished), "--resume")
        assert (finished / "other").read_bytes() == kept
        (finished / "other").unlink()
    assert _main([*ARGUMENTS, "--out", str(finished), "--resume"]) == 0


def test_a_linked_checkpoint_is_passed_over_and_what_is_behind_it_stays(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = outside(tmp_path)
    (finished / "result.json").unlink()
    (finished / "checkpoint" / "step-0").symlink_to(theirs)
    capsys.readouterr()
    assert _main([*ARGUMENTS, "--out", str(finished), "--resume"]) == 0
    assert (theirs / "theirs").read_text() == "theirs\n"
    (finished / "result.json").unlink()
    latest = (finished / "checkpoint" / "latest").read_text().strip()
    (finished / "checkpoint" / latest).rename(tmp_path / "elsewhere")
    (finished / "checkpoint" / latest).symlink_to(tmp_path / "elsewhere")
    assert _main([*ARGUMENTS, "--out", str(finished), "--resume"]) == 0
    assert "is a link" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_a_linked_folder_of_checkpoints_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "checkpoint").rename(tmp_path / "elsewhere")
    (finished / "checkpoint").symlink_to(tmp_path / "elsewhere")
    (finished / "result.json").unlink()
    before = sorted(p.name for p in (tmp_path / "elsewhere").iterdir())
    assert "checkpoint is not a folder" in refusal(capsys, *ARGUMENTS, "--out", str(finished), "--resume")
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == before


@ODD
@pytest.mark.parametrize("name", ["result.json", "config.toml", "events.jsonl"])
def test_a_report_passes_over_a_run_with_an_odd_file(finished: Path, name: str, make: Callable[[Path], None]) -> None:
    (finished / name).unlink()
    make(finished / name)
    records, problems = load([finished])
    if name == "events.jsonl":
        assert list(records[0].events()) == []
    else:
        assert records == []
        assert name in problems[0].reason


def test_a_report_reads_no_file_without_bounds(finished: Path) -> None:
    with (finished / "result.json").open("r+b") as file:
        file.truncate(1 << 40)
    (problem,) = load([finished])[1]
    assert "at most" in problem.reason


@ODD
def test_an_odd_configuration_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "config.toml")
    assert "configuration" in refusal(capsys, "run", "--config", str(tmp_path / "config.toml"))
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert "at most" in refusal(capsys, "run", "--config", str(tmp_path / "large.toml"))


def test_a_run_directory_that_is_removed_ends_the_run_and_is_not_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sparcl", *ARGUMENTS, "--epochs", "2000", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        while not (out / "checkpoint" / "latest").exists():
            assert run.poll() is None
        out.rename(tmp_path / "moved")
        out.mkdir()
        (out / "theirs").write_text("theirs\n")
        error = run.communicate(timeout=50)[1]
    assert run.returncode == 2
    assert len(error.splitlines()) == 1
    assert "was removed" in error
    assert [p.name for p in out.iterdir()] == ["theirs"]
    assert (tmp_path / "moved" / "checkpoint" / "latest").exists(), "what was saved stays"


def hard_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("theirs\n")
    path.hardlink_to(target)


@pytest.mark.parametrize("make", [pipe, endless, link, Path.mkdir, hard_link])
@pytest.mark.parametrize("name", ["a.log", "a.err"])
def test_a_job_whose_log_is_an_odd_file_fails_in_one_line_and_stops_no_other(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    outcomes: list[Outcome] = []
    jobs = [Job(job, ("sh", "-c", "echo done"), tmp_path / f"{job}.log") for job in ("a", "b")]
    Local().run(jobs, lambda _: None, outcomes.append)
    reasons = {outcome.job.name: outcome.reason for outcome in outcomes}
    assert reasons["b"] is None
    assert (tmp_path / "b.log").read_text() == "done\n"
    assert f"could not be started: {tmp_path / name}: " in str(reasons["a"])
    assert "\n" not in str(reasons["a"])
    if (tmp_path / "target").exists():
        assert (tmp_path / "target").read_text() == "theirs\n"


def test_a_log_is_added_to_and_what_was_said_of_errors_is_of_the_last_start(tmp_path: Path) -> None:
    job = Job("a", ("sh", "-c", "echo out; echo error >&2; exit 3"), tmp_path / "a.log")
    outcomes: list[Outcome] = []
    for _ in range(2):
        Local().run([job], lambda _: None, outcomes.append)
    assert job.log.read_text() == "out\nout\n"
    assert job.errors.read_text() == "error\n"
    assert [outcome.reason for outcome in outcomes] == ["error", "error"]


def test_a_sweep_whose_work_folder_is_a_link_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = outside(tmp_path)
    (tmp_path / "sweep.toml").write_text('[base]\nstream = "seq-digits"\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".sweep").symlink_to(theirs)
    line = refusal(capsys, "sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out"))
    assert ".sweep is a link" in line
    assert [p.name for p in theirs.iterdir()] == ["theirs"]


@pytest.mark.parametrize("make", [pipe, endless, link, Path.mkdir, hard_link])
def test_metrics_are_written_through_no_odd_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "metrics.csv")
    with pytest.raises(ConfigError, match=r"metrics\.csv cannot be written: "):
        CSV(tmp_path, {}, [])
    if (tmp_path / "target").exists():
        assert (tmp_path / "target").read_text() == "theirs\n"


@pytest.mark.parametrize(
    "arguments", [["export", "RUN", "--out", "X.safetensors"], ["pack", "seq-digits", "--out", "X"]]
)
def test_a_file_to_write_takes_the_place_of_no_odd_file_and_a_link_stays_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    place = tmp_path / arguments[-1].lower()
    words = [str(finished) if a == "RUN" else str(place) if a.startswith("X") else a for a in arguments]
    pipe(place)
    assert "it is not a regular file" in refusal(capsys, *words)
    assert place.is_fifo()
    place.unlink()
    (tmp_path / "real").touch()
    place.symlink_to("real")
    assert _main(words) == 0
    assert place.is_symlink()
    assert (tmp_path / "real").stat().st_size > 0


def test_a_device_file_takes_the_place_of_no_odd_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(tmp_path / "x")
    line = refusal(capsys, "export", str(finished), "--format", "device", "--out", str(tmp_path / "x"))
    assert "it is not a regular file" in line
    assert (tmp_path / "x").is_fifo()


def test_a_watch_reads_no_line_without_bounds(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (finished / "events.jsonl").open("ab") as file:
        file.truncate(1 << 26)  # a hole of zeros, and no line's end
    capsys.readouterr()
    assert _main(["watch", str(finished)]) == 0
    assert "finished: " in capsys.readouterr().out
