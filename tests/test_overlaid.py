"""Another project's package named sparcl, over or under this one, is named at once with the remedy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparcl
from sparcl import overlaid

OURS = Path(sparcl.__file__).parent
REMEDY = "pip uninstall sparclclient sparcl-edge, then install sparcl-edge alone"
MAIN = "import sys; from sparcl.main import main; sys.argv = ['sparcl', 'info']; main()"


def add_record(site: Path, name: str, *files: str) -> None:
    (site / f"{name}-1.2.dist-info").mkdir()
    (site / f"{name}-1.2.dist-info" / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages: ours, and a record of another that wrote to the same place."""
    site = tmp_path / "site"
    shutil.copytree(OURS, site / "sparcl", ignore=shutil.ignore_patterns("__pycache__"))
    add_record(site, "sparcl_edge", "sparcl/__init__.py", "sparcl/cli.py")
    add_record(site, "sparclclient", "sparcl/__init__.py", "sparcl/client.py")
    return site


def python(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Without this environment's own `sparcl`, whose finder comes before every folder (-S), but with its libraries."""
    path = f"import sys; sys.path += [{str(site)!r}, {str(Path(np.__file__).parents[1])!r}]; "
    return subprocess.run([sys.executable, "-S", "-c", path + code], capture_output=True, text=True, check=False)


def test_the_others_are_found_by_what_they_installed(tmp_path: Path) -> None:
    add_record(tmp_path, "sparcl_edge", "sparcl/__init__.py")
    add_record(tmp_path, "torch", "torch/__init__.py", "torch/sparcl/__init__.py")
    assert overlaid.others(tmp_path) == []
    assert overlaid.warning(tmp_path) == ""
    add_record(tmp_path, "sparcl", "sparcl.txt", "sparcl/__init__.py")
    add_record(tmp_path, "sparcl_client", "sparcl/__init__.py")
    assert overlaid.others(tmp_path) == ["sparcl", "sparcl-client"]
    assert "pip uninstall sparcl sparcl-client sparcl-edge" in overlaid.warning(tmp_path)


def test_the_import_warns_where_ours_is_on_top(site: Path) -> None:
    done = python(site, "import sparcl; print(sparcl.Learner.__name__)")
    assert (done.returncode, done.stdout) == (0, "Learner\n"), done.stderr
    assert REMEDY in done.stderr


def test_the_command_refuses_in_one_line_where_theirs_is_on_top(site: Path) -> None:
    (site / "sparcl" / "__init__.py").write_text("client = 1\n")
    done = python(site, MAIN)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sparcl: another distribution, sparclclient, installs a package sparcl")
    assert REMEDY in line


def test_nothing_is_said_where_ours_is_alone(site: Path) -> None:
    shutil.rmtree(site / "sparclclient-1.2.dist-info")
    done = python(site, MAIN)
    assert (done.returncode, done.stderr) == (0, "")
