"""A working folder with a finished run in it, for every walk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from walked import ROW, RUN

from sparcl.main import _main
from sparcl.run import bench


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("walk") / "run"
    assert _main([*RUN, "--out", str(out)]) == 0
    np.save(out.parent / "x.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))
    return out


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a finished run in it, `run`, and what it can be asked, `x.npy`."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(finished, folder / "run")
    shutil.copy(finished.parent / "x.npy", folder)
    (folder / "settings.toml").write_text('stream = "seq-digits"\n')
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bench, "measure_all", lambda **_: [ROW])
    return folder
