"""`sparcl watch` beside a run: lines as they come, an end when the run ends, one line where there is none."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparcl.main import _main
from sparcl.run import watch
from sparcl.run.lock import locked


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)


def line(event: str, **figures: Any) -> str:
    return json.dumps({"event": event, "task": 0, "epoch": 0, "step": 0, **figures}) + "\n"


def said(run: Path) -> list[str]:
    out = io.StringIO()
    watch.watch(run, Console(file=out, width=200))
    return out.getvalue().splitlines()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run directory that a process holds."""
    with locked(tmp_path / "run"):
        yield tmp_path / "run"


def written(path: Path, pieces: list[str | int]) -> threading.Thread:
    """Somebody appends to a file, piece by piece; a number cuts it to so many bytes."""

    def write() -> None:
        for piece in pieces:
            time.sleep(0.1)
            if isinstance(piece, int):
                os.truncate(path, piece)
            else:
                with path.open("a", encoding="utf-8") as file:
                    file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_it_follows_a_run_to_its_end_over_a_resume(held: Path) -> None:
    """The events come after the watcher, one in two pieces; a resume takes some of them back."""
    begin, task = line("run.begin", tasks=2), line("task.begin", samples=80)
    loss = line("loss.epoch", step=9, loss=0.51234)
    end = line("evaluate", task=1, class_il=[80.0, 60.0], task_il=[90.0, 100.0], seen=2)
    resume = line("run.resume", step=4)
    last = line("run.end", task=1, class_il=70.0, task_il=95.0)
    pieces = [begin, task[:20], task[20:], loss, len(begin + task), resume, loss, "not json\n[1]\n", end, last]
    writer = written(held / "events.jsonl", pieces)
    assert said(held) == [
        "task 1/2 begins: 80 samples",
        "task 1/2  epoch 1  all 9  loss 0.5123",
        "resumed at step 4",
        "task 1/2  epoch 1  all 9  loss 0.5123",
        "task 2/2 learned: Class-IL 70.00 %, Task-IL 95.00 %",
        "finished: Class-IL 70.00 %, Task-IL 95.00 %",
    ]
    writer.join()


def test_a_run_that_nobody_works_on_is_told_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(line("ddr.remove", removed=3, kept=4))
    told = said(tmp_path)
    assert told[0] == "task 1  epoch 1  3 samples removed, 4 kept"
    assert "--resume goes on with it" in told[1]


def test_a_finished_run_whose_events_were_cut_off_is_finished(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(line("ddr.remove", removed=3, kept=4))
    (tmp_path / "result.json").write_text("{}")
    assert said(tmp_path)[1].endswith("is finished, and its events.jsonl was cut off before its end")


def test_figures_that_are_none_are_left_out(tmp_path: Path) -> None:
    odd = [line("loss", loss="high"), line("evaluate", class_il=None, task_il=[1e308]), line("run.begin", tasks=-1)]
    (tmp_path / "events.jsonl").write_text("".join(odd) + line("run.end", class_il=None, task_il=50.0))
    assert said(tmp_path) == ["task 1 learned: no accuracy told", "finished: Task-IL 50.00 %"]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda path: path.parent.touch(), "does not exist"),
        (lambda path: path.touch(), "is not a run directory"),
        (lambda path: path.mkdir(), "holds no run"),
        (lambda path: (path.mkdir(), os.mkfifo(path / "events.jsonl")), "is not a regular file"),
        (lambda path: (path / "events.jsonl").mkdir(parents=True), "is not a regular file"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Any, says: str) -> None:
    made(tmp_path / "run")
    assert _main(["watch", str(tmp_path / "run")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert says in told


def test_ctrl_c_ends_it_without_a_word(
    held: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    assert _main(["watch", str(held)]) == 130
    assert capsys.readouterr() == ("", "")
