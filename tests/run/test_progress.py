"""Progress where there is no colour, no cursor, no letter for a sign, or nobody who listens."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys import make_learner

from sparcl.run.console import CommandConsole
from sparcl.run.progress import Progress, spell_out, updates_in_place

RUN = ["-m", "sparcl", "run", "seq-digits", "--epochs", "1", "--limit-per-class", "40", "--width", "4"]
QUICK = [sys.executable, *RUN, "--threads", "1", "--backend", "reference", "--out"]


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "JPY_PARENT_PID": "1"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_a_line_is_rewritten_only_where_it_can_be(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR", "JPY_PARENT_PID", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = CommandConsole(file=io.StringIO(), force_terminal=terminal)
    assert updates_in_place(console) is expected


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [({"LANG": "C", "PYTHONIOENCODING": "ascii"}, r"[\x00-\x7f]*"), ({"NO_COLOR": "1"}, r"[^\x1b]*")],
)
def test_a_run_speaks_what_its_reader_can_show(tmp_path: Path, environment: dict[str, str], allowed: str) -> None:
    packnet = ["--method", "packnet", "--sparsifier", "dense"]  # whose Class-IL is a dash
    command = [*QUICK, str(tmp_path / "run"), *packnet]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, check=True)
    output = done.stdout.decode("utf-8")
    assert re.fullmatch(allowed, output, re.DOTALL)
    assert re.search(r"Task-IL / Class-IL .* \d.* % / [-–]", output)
    assert done.stderr == b""


def test_signs_are_spelt_out_where_there_is_no_letter_for_them() -> None:
    spell_out()
    assert "3 ± 1 – 2×…界".encode("ascii", "sparcl.plain") == b"3 +- 1 - 2x...\\u754c"


@pytest.mark.parametrize(("budget", "left"), [({"epochs": 4}, "3:00"), ({"epochs": None, "steps": 4}, "1:00")])
def test_time_left_is_that_of_the_samples_to_come(
    budget: dict[str, Any], left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first task, of 100 samples, another has 300: thrice as long by epochs, as long by steps."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=40), [100, 300], make_learner(**budget))
    began = progress._started
    step = {"task": 1, "step": 1, "steps": 2, "loss": 0.5}
    progress("epoch.begin", {"task": 1})
    monkeypatch.setattr(time, "monotonic", lambda: began + 60)
    progress("step.end", {**step, "spent": 0.0})
    monkeypatch.setattr(time, "monotonic", lambda: began + 100)
    progress.resume_at(1.0)
    monkeypatch.setattr(time, "monotonic", lambda: began + 160)
    progress("step.end", {**step, "spent": 0.25})
    first, second = out.getvalue().splitlines()
    assert first.endswith(f"time left {left}")
    assert second.endswith("time left 3:00")
