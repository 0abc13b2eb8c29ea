"""The program, built once for all tests of a session (SPARCL_DEVICE names one that is built already), and a file."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import made
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("make", "cmake", "c++")
LOCK = ROOT / "build" / "tests" / "device.lock"


@pytest.fixture(scope="session")
def program() -> Path:
    if built := os.environ.get("SPARCL_DEVICE"):
        return Path(built)
    if not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs {', '.join(TOOLS)}")
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:  # another process runs tests of the program, too
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["make", "sparcl-device"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.search(r"^built: (.+), (\d+) bytes$", done.stdout, re.MULTILINE)
    assert said
    assert int(said[2]) < 5_000_000
    return ROOT / said[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model, and beside it samples of a second task."""
    first, second, _ = made.stream(per_class=200)
    learner = made.learner()
    learner.learn(first)
    made.packed(second, tmp_path / "s.sparcl")
    return made.export(learner, tmp_path / "m.sparcl", first)
