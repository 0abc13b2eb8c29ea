"""A sweep over runs that are there: what they found out by themselves is no difference, and is left to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sparcl.errors import ConfigError
from sparcl.run import run as running
from sparcl.run import sweep
from sparcl.run.record import RunDirectory

FOLDER = '[base]\nstream = "folder"\ndata = "photos"\nclasses_per_task = 2\n[grid]\nseed = [0]\n'
LESS_MEMORY = '[base]\nstream = "seq-digits"\nmax_memory = "390MB"\nbuffer_size = 100\n[grid]\nseed = [0]\n'


def cells(tmp_path: Path, text: str) -> list[sweep.Cell]:
    (tmp_path / "grid.toml").write_text(text)
    return sweep.read(tmp_path / "grid.toml")


def begun(tmp_path: Path, text: str, **as_written: Any) -> tuple[sweep.Cell, Path]:
    """The only cell of a sweep, and a run directory of it whose config.toml says what the run found out."""
    (cell,) = cells(tmp_path, text)
    there = dataclasses.replace(cell.experiment, **as_written)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(there.to_toml())
    return cell, tmp_path / "run"


def test_what_a_run_found_out_by_itself_is_no_difference(tmp_path: Path) -> None:
    """Whether a folder is read lazily; what was given up for a limit of memory."""
    for name, text, found in (
        ("folder", FOLDER, {"lazy": False}),
        ("memory", LESS_MEMORY, {"batch_size": 8, "fitted": {"import": 1}}),
    ):
        (tmp_path / name).mkdir()
        cell, there = begun(tmp_path / name, text, **found)
        sweep._check_directory(there, cell.experiment, cell.named)
        assert "add --resume" in running._taken(RunDirectory(there), cell.experiment, cell.named)
        other = dataclasses.replace(cell.experiment, seed=5)
        with pytest.raises(ConfigError, match="seed = 0, but 5"):
            sweep._check_directory(there, other, cell.named)


def test_under_a_limit_of_memory_what_the_file_does_not_name_gives_way(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, LESS_MEMORY)
    sweep._job(cell, tmp_path / "out")
    given = (tmp_path / "out" / ".sweep" / f"{cell.name}.toml").read_text()
    assert "buffer_size = 100" in given
    assert not [name for name in ("batch_size", "sparsity") if f"\n{name} = " in given]
