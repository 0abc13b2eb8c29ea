"""The tests see the tools that the README names, whatever else the machine has, and these work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BESIDE_THE_TOOLS = ("sbatch", "srun", "git", "qemu-aarch64", "aarch64-linux-gnu-g++", "pip", "ninja", "docker", "perl")


@pytest.mark.parametrize("name", BESIDE_THE_TOOLS)
def test_what_the_readme_does_not_name_is_not_found(name: str) -> None:
    assert shutil.which(name) is None


def test_the_path_is_one_folder_of_links_that_all_lead_somewhere() -> None:
    (folder,) = map(Path, os.environ["PATH"].split(os.pathsep))
    names = {path.name for path in folder.iterdir()}
    assert {"sh", "make", "mkdir"} <= names
    assert all(path.is_symlink() and path.exists() for path in folder.iterdir())


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs c++")
def test_the_compiler_finds_its_parts(tmp_path: Path) -> None:
    (tmp_path / "four.cpp").write_text("#include <vector>\nint main() { return std::vector<int>{4}[0]; }\n")
    subprocess.run(["c++", "four.cpp", "-o", "four"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "four"], check=False).returncode == 4


def test_no_two_test_files_have_one_name() -> None:
    """Pytest imports them by it."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert len(set(names)) == len(names)
