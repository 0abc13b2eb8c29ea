"""The sweep on a real SLURM cluster: `make test-slurm` starts one around these tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no cluster here; run make test-slurm"),
    pytest.mark.usefixtures("outer_path"),
]

SWEEP = """
[base]
stream = "seq-digits"
sparsifier = "dense"
model = "mlp"
width = 8
epochs = {epochs}

[grid]
seed = [0, 1]

[[runs]]
base = {{ method = "finetune" }}
{more}
"""
FAILS = """
[[runs]]
base = { stream = "seq-mnist", method = "finetune", data = "/nowhere" }
"""
SLURM = ["--launcher", "slurm", "--partition", "short", "--time", "0:05:00", "--memory", "900M"]


def sweep_command(folder: Path, epochs: int, more: str = "") -> list[str]:
    (folder / "grid.toml").write_text(SWEEP.format(epochs=epochs, more=more))
    return [sys.executable, "-m", "sparcl", "sweep", str(folder / "grid.toml"), "--out", str(folder / "out"), *SLURM]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs() -> list[str]:
    """Ids of all jobs that the cluster remembers; their states go on changing after a sweep's end."""
    return re.findall(r"JobId=(\d+)", slurm("scontrol", "show", "job", "--oneliner"))


def test_a_grid_runs_on_the_cluster_and_a_failed_run_stops_no_other(tmp_path: Path) -> None:
    command = sweep_command(tmp_path, 1, FAILS)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    # sacct complains on a cluster without accounting; ours is the last line.
    assert done.stderr.splitlines()[-1].startswith("sparcl: 2 of 4 runs failed")
    assert "failed (2)" in done.stdout
    assert done.stdout.count("/nowhere") >= 2
    for seed in (0, 1):
        result = tmp_path / "out" / f"seq-digits-finetune-dense-seed{seed}" / "result.json"
        assert json.loads(result.read_text())["seed"] == seed
    job = slurm("scontrol", "show", "job", "--oneliner").splitlines()[0]
    assert "Partition=short" in job
    assert "TimeLimit=00:05:00" in job
    assert "MinMemoryNode=900M" in job


def test_the_same_command_again_queues_nothing(tmp_path: Path) -> None:
    command = sweep_command(tmp_path, 1)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    before = jobs()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "2 finished, 0 begun before, 0 new" in again.stdout
    assert jobs() == before != []


def test_what_the_cluster_refuses_is_no_traceback(tmp_path: Path) -> None:
    command = [*sweep_command(tmp_path, 1), "--partition", "absent"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    ours = refused.stderr.splitlines()[-1]  # below what sbatch itself says
    assert ours.startswith("sparcl: the cluster refuses these jobs: ")
    assert "partition" in ours
    assert "Traceback" not in refused.stderr


def test_a_job_whose_time_is_up_queues_again_and_finishes(tmp_path: Path) -> None:
    """The signal that SLURM sends before a limit: the run is stopped, queued again, and ends with a result."""
    before = set(job_ids())
    with subprocess.Popen(sweep_command(tmp_path, 60), stdout=subprocess.PIPE, text=True) as sweep:
        run = tmp_path / "out" / "seq-digits-finetune-dense-seed0"
        wait_for(lambda: (run / "events.jsonl").exists())
        first = sorted(set(job_ids()) - before)[0]
        slurm("scancel", "--signal=USR2", first)
        output, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, output
    assert (run / "result.json").exists()
    assert re.search(r"Restarts=1\b", slurm("scontrol", "show", "job", first))


def job_ids() -> list[str]:
    return re.findall(r"^JobId=(\d+)", slurm("scontrol", "show", "job", "--oneliner"), flags=re.MULTILINE)


def wait_for(ready: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
