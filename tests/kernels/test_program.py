"""The program sparcl-bench, the kernels without Python: is its training step right, and what does it say?"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparcl import kernels

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("make", "cmake", "c++")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")


@pytest.fixture(scope="module")
def program() -> Path:
    build = ["make", "program", "PROGRAM=build/tests/program"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.search(r"^built: (.+)$", done.stdout, re.MULTILINE)
    assert said
    return ROOT / said[1]


def run(program: Path, *arguments: str, isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPARCL_ISA": isa}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_loss_and_gradients_are_right(program: Path, isa: str) -> None:
    done = run(program, "--check", "--threads", "2", isa=isa)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"right on {isa}: 62 gradients")


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_a_step_is_timed_and_its_saving_counted(program: Path, pattern: str) -> None:
    size = ("--width", "8", "--batch", "3", "--threads", "1", "--steps", "2")
    done = run(program, *size, "--pattern", pattern, "--sparsity", "0.75", isa="plain")
    assert (done.returncode, done.stderr) == (0, "")
    heading, row = (line.split() for line in done.stdout.splitlines()[-2:])
    assert "width 8, batch 3, 32x32, 1 thread(s), plain" in done.stdout
    assert (heading[0], row[0], float(row[1])) == ("pattern", pattern, 0.75)
    dense_ms, sparse_ms, speedup = float(row[2]), float(row[3]), float(row[4].rstrip("x"))
    assert speedup == pytest.approx(dense_ms / sparse_ms, rel=0.05)
    # Multiply-adds of a sample, forward: 3x3 convolutions 8,552,448, shortcuts and classifier 98,944, and the stem
    # 221,184, without input gradient: (3 (8552448 + 98944) + 2 · 221184) / (3 (8552448 / 4 + 98944) + 2 · 221184).
    assert row[7] == "3.7x"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--width", "7"), "--width 7 is not allowed; use a multiple of 4"),
        (("--batch", "1"), "--batch 1 is not allowed; use a number from 2 to 4096"),
        (("--steps", "1.5"), "--steps 1.5 is not allowed; use a whole number"),
        (("--sparsity", "nan"), "--sparsity nan is not allowed; use a number from 0 to 0.99"),
        (("--threads",), "--threads without a value is not allowed; use a number from 1 to 1024"),
        (("--pattern", "stripes"), "--pattern stripes is not allowed; use unstructured or block"),
        (
            ("--epochs", "3"),
            "unknown option --epochs; allowed: --width --batch --sparsity --pattern --threads --steps --check --help",
        ),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(program: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sparcl-bench: {said}\n")


def test_an_instruction_set_that_is_not_there_is_refused(program: Path) -> None:
    done = run(program, "--check", isa="mmx")
    assert done.returncode == 2
    assert done.stderr.startswith("sparcl-bench: SPARCL_ISA=mmx is not available; this processor has: ")
