"""`sparcl report` as a whole: every form, and what cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run

from sparcl import regular
from sparcl.errors import ConfigError
from sparcl.report import FORMATS, write


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_lists_what_was_left_out_and_writes_the_rest(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "good")
    (make_run(tmp_path / "runs" / "bad", {"seed": 1}) / "result.json").write_text("{")
    out = tmp_path / "new" / "report"
    write([tmp_path / "runs"], form, out)
    text = out.read_text(encoding="utf-8")
    assert "50.0" in text
    where = capsys.readouterr().err if form == "csv" else text  # programs read CSV: no prose in it
    assert "result.json is damaged" in where


def test_without_out_the_table_goes_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", {"preset": "[red]x[/red]"})
    make_run(tmp_path / "other", {"preset": "y"})
    write([tmp_path])
    output = capsys.readouterr().out
    assert "Class-IL %" in output
    assert "[red]x[/red]" in output


@pytest.mark.parametrize(
    ("form", "reason"), [("pdf", "allowed: table, markdown, csv, html"), ("html", "name it with --out")]
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, form: str, reason: str) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=reason):
        write([tmp_path], form)


def test_an_unwritable_file_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot write"):
        write([tmp_path / "run"], "csv", tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_path_that_is_no_text_is_escaped_in_the_file(tmp_path: Path, form: str) -> None:
    make_run(tmp_path / os.fsdecode(b"run\xff"))
    (make_run(tmp_path / os.fsdecode(b"bad\xff"), {"seed": 1}) / "result.json").write_text("{")
    write([tmp_path], form, tmp_path / "out")
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert "50.0" in text
    escaped = "bad\\\\xff" if form == "markdown" else "bad\\xff"  # Markdown's own escape of the backslash
    assert form == "csv" or escaped in text


def test_what_was_there_stays_whole_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "page.csv").write_text("the old one")
    (tmp_path / "link").symlink_to("page.csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ConfigError, match=r"cannot write .*: No space left"):
            write([tmp_path / "run"], "csv", tmp_path / "page.csv")
    assert (tmp_path / "page.csv").read_text() == "the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "page.csv", "run"]
    write([tmp_path / "run"], "csv", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "50.0" in (tmp_path / "page.csv").read_text()


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    write([tmp_path / "run"], "csv", Path(os.devnull))
    assert not Path(os.devnull).is_file()


def test_nothing_is_written_through_a_link_at_the_name_of_the_file_in_the_making(tmp_path: Path) -> None:
    """The name tells its process alone, so that anybody may put a link there beforehand, as in /tmp."""
    make_run(tmp_path / "run")
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / f".sparcl-{os.getpid()}.tmp").symlink_to("theirs")
    write([tmp_path / "run"], "csv", tmp_path / "page.csv")
    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (tmp_path / "page.csv").is_symlink()
    assert "50.0" in (tmp_path / "page.csv").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.csv", "run", "theirs"]


def test_a_pipe_that_is_read_gets_the_table_and_one_that_is_not_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot write .*pipe: nobody reads it$"):
        write([tmp_path / "run"], "csv", tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write([tmp_path / "run"], "csv", tmp_path / "pipe")
        assert b"50.0" in os.read(reader, 1 << 16)
    finally:
        os.close(reader)


def test_standard_output_may_be_named_as_a_file(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    words = [sys.executable, "-m", "sparcl", "report", str(tmp_path / "run"), "--format", "csv"]
    done = subprocess.run([*words, "--out", "/proc/self/fd/1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "50.0" in done.stdout
    pack = [sys.executable, "-m", "sparcl", "pack", "seq-digits", "--split", "test", "--out", "/proc/self/fd/1"]
    done = subprocess.run(pack, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "it is not a regular file" in done.stderr


def test_no_finished_run_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run to report: .*absent: no such directory"):
        write([tmp_path / "absent"])


def test_the_command_reports_and_refuses_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    command = [sys.executable, "-m", "sparcl", "report"]
    done = subprocess.run([*command, tmp_path, "--format", "markdown"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| seq-cifar10 | derpp | sparcl | 0.90 |" in done.stdout
    refused = subprocess.run([*command, tmp_path / "absent"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""


def test_a_page_that_the_disk_has_no_room_for_is_not_left_in_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"<!doctype")
        raise OSError(errno.ENOSPC, "No space left on device")

    make_run(tmp_path / "run")
    before = sorted((tmp_path / "run").iterdir())
    monkeypatch.setattr(regular, "open_new", full)
    with pytest.raises(ConfigError, match=r"cannot write .*: No space left"):
        write([tmp_path / "run"], "html", tmp_path / "run" / "report.html")
    assert sorted((tmp_path / "run").iterdir()) == before
