"""Shared by all tests: one thread, a cache of its own, and a PATH of only the tools that the README names."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A busy machine is no failure: speed is measured in benchmarks/, never in tests.
settings.register_profile("sparcl", deadline=None)
settings.load_profile("sparcl")

# A script's background job ignores Ctrl-C, one under nohup a closed terminal, and so would the commands that a test
# starts and ends by them.
for ignored, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, usual)

SHELL = (
    "sh",
    "cat",
    "chmod",
    "cp",
    "env",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "sleep",
    "test",
    "touch",
    "true",
    "uname",
    "wc",
)
COMPILER = ("cc", "c++", "gcc", "g++", "clang", "clang++", "as", "ld", "ar", "nm", "ranlib", "strip")
OWN = [word for name in ("CC", "CXX") for word in shlex.split(os.environ.get(name, ""))[:1]]  # the user's compiler
TOOLS = (*SHELL, "make", *COMPILER, "cmake", *OWN)
"""What a test may start beside its own Python; one that needs more skips and says so, or brings a stand-in."""

OUTER = os.environ.setdefault("TESTS_OUTER_PATH", os.environ.get("PATH", os.defpath))
"""The PATH from outside: worker processes start with the one that is made here."""

FOLDER = Path(__file__).parents[1] / "build" / "tests" / "path"  # lasting: CMake notes where it found a compiler


NUMBERS = itertools.count()
CACHE = tempfile.TemporaryDirectory(prefix="sparcl-tests-")


def pytest_configure() -> None:
    os.environ["XDG_CACHE_HOME"] = CACHE.name  # never the user's own
    os.environ.pop("SPARCL_CACHE", None)
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = {Path(name).name: shutil.which(name, path=OUTER) for name in TOOLS}
    for link in FOLDER.iterdir():
        if str(link.readlink()) != found.get(link.name):
            link.unlink(missing_ok=True)
    for name, target in found.items():
        if target:
            with contextlib.suppress(FileExistsError):
                (FOLDER / name).symlink_to(target)
    os.environ["PATH"] = str(FOLDER)


def pytest_unconfigure() -> None:
    CACHE.cleanup()
    os.environ["PATH"] = os.environ.pop("TESTS_OUTER_PATH")


@pytest.fixture
def outer_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what the machine has beside the tools, where it has it: its own PATH."""
    monkeypatch.setenv("PATH", OUTER)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty for each test: what another has measured is no part of this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", f"{CACHE.name}/{next(NUMBERS)}")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
