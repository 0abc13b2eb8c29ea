"""Sweeps: the grid a file means, what is refused before any run, and what becomes of runs that fail or are skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from submitit.core.job_environment import SignalHandler
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from sparcl.errors import ConfigError
from sparcl.main import _main
from sparcl.run import launch, sweep

GRID = """
[base]
stream = "seq-digits"
epochs = 1

[grid]
seed = [0, 1]

[[runs]]
base = { method = "finetune", sparsifier = "dense" }

[[runs]]
base = { method = "derpp" }
grid = { sparsity = [0.75, 0.90] }

[[runs]]
stage = 2
base = { method = "derpp", sample_removal = 0.0, method_options = { alpha = 0.5 } }
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    return file


def test_blocks_times_grids_in_order_of_stage_then_seed(tmp_path: Path) -> None:
    cells = sweep.read(write(tmp_path, GRID))
    assert [cell.name for cell in cells] == [
        "seq-digits-finetune-dense-seed0",
        "seq-digits-derpp-sparcl-0.75-seed0",
        "seq-digits-derpp-sparcl-0.9-seed0",
        "seq-digits-finetune-dense-seed1",
        "seq-digits-derpp-sparcl-0.75-seed1",
        "seq-digits-derpp-sparcl-0.9-seed1",
        "seq-digits-derpp-sparcl-0.9-sample_removal=0.0-method_options=alpha=0.5-seed0",
        "seq-digits-derpp-sparcl-0.9-sample_removal=0.0-method_options=alpha=0.5-seed1",
    ]
    assert all(cell.experiment.epochs == 1 for cell in cells)
    assert cells[-1].experiment.method_options["alpha"] == 0.5
    assert cells[-1].experiment.sample_removal == 0.0


def test_a_file_without_blocks_is_its_full_grid(tmp_path: Path) -> None:
    text = '[base]\nstream = "seq-digits"\n[grid]\nbuffer_size = [200, 500]\nseed = [1, 0]\n'
    cells = sweep.read(write(tmp_path, text))
    assert [(c.experiment.seed, c.experiment.buffer_size) for c in cells] == [(0, 200), (0, 500), (1, 200), (1, 500)]


def test_a_blocks_own_setting_takes_the_place_of_the_grids(tmp_path: Path) -> None:
    text = GRID.replace('method = "derpp" }', 'method = "derpp", seed = 7 }')
    seeds = [c.experiment.seed for c in sweep.read(write(tmp_path, text)) if c.experiment.method == "derpp"]
    assert seeds == [7, 7, 0, 1]


def test_a_dense_block_takes_back_what_the_sparse_ones_have_in_common(tmp_path: Path) -> None:
    text = (
        "[base]\nstream = 'seq-digits'\nprunable = ['conv*']\n[grid]\npattern = ['unstructured', 'block']\n[[runs]]\n"
    )
    text += "[[runs]]\nbase = { sparsifier = 'dense', pattern = 'unstructured', prunable = [] }\n"
    cells = sweep.read(write(tmp_path, text))
    assert [(c.experiment.sparsifier, c.experiment.pattern) for c in cells] == [
        ("sparcl", "unstructured"),
        ("sparcl", "block"),
        ("dense", "unstructured"),
    ]


def test_a_run_named_twice_runs_once(tmp_path: Path) -> None:
    text = GRID + '\n[[runs]]\nbase = { method = "derpp" }\ngrid = { sparsity = [0.9] }\n'
    assert len(sweep.read(write(tmp_path, text))) == 8


def test_an_added_run_renames_no_other(tmp_path: Path) -> None:
    before = {c.name for c in sweep.read(write(tmp_path, GRID))}
    more = GRID.replace("sparsity = [0.75, 0.90]", "sparsity = [0.75, 0.90], importance = ['cwi', 'magnitude']")
    after = {c.name for c in sweep.read(write(tmp_path, GRID + '[[runs]]\nbase = { method = "er" }\n'))}
    assert before < after
    assert len({c.name for c in sweep.read(write(tmp_path, more))}) == 12


def test_the_place_of_the_data_holds_for_every_run_that_reads_any(tmp_path: Path) -> None:
    text = "[base]\nmethod = 'er'\n[grid]\nstream = ['seq-mnist', 'seq-digits']\n"
    assert [c.experiment.data for c in sweep.read(write(tmp_path, text), "/some/where")] == ["/some/where", None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[bse]\n", "unknown key 'bse'; allowed: base, grid, runs"),
        ("[base]\nstream = 'seq-digits'\n[[runs]]\nbas = {}\n", "unknown key 'bas'; allowed: base, grid, stage"),
        ("[base]\nstream = 'seq-digits'\nspeed = 1\n", "unknown setting 'speed'"),
        ("[base]\nstream = 'seq-digits'\n[grid]\nmethod = ['derpp', 'nope']\n", "method=nope: unknown method 'nope'"),
        ("[base]\nstream = 'seq-digits'\n[grid]\nseed = 3\n", "grid seed must be a list"),
        ("[base]\nstream = 'seq-digits'\n[grid]\nseed = []\n", "grid seed must be a list"),
        ("[base]\nstream = 'seq-digits'\nseed = 1\n[grid]\nseed = [0]\n", "seed stands in base and in grid"),
        ("[base]\nstream = 'seq-digits'\n[[runs]]\nstage = 0\n", "stage 0 is not allowed"),
        ("base = 3\n", "base must be a table"),
        ("runs = []\n", "runs must be blocks"),
        ("[base]\nstream = 'seq-digits'\nmethod_options = { beta2 = 1.0 }\n", "has no option 'beta2'"),
        (
            "[base]\nstream = 'seq-digits'\n[grid]\nsparsifier = ['sparcl', 'dense']\npattern = ['block']\n",
            'sparsifier=dense, pattern=block: pattern "block" goes with a sparsifier',
        ),
        (
            "[base]\nstream = 'seq-digits'\ngradient_sparsity = 0.0\nimportance='none'\n[grid]\nranking = ['fresh']\n",
            "ranking fresh changes nothing",
        ),
        ("stream = 'seq-digits'\n", "the settings of one run go to sparcl run --config"),
        ("= 1", "is not valid TOML"),
    ],
)
def test_what_is_not_allowed_is_refused_before_any_run(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep.read(write(tmp_path, text))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


# --- launching -------------------------------------------------------------------------------------------------


def python(tmp_path: Path, name: str, code: str) -> launch.Job:
    return launch.Job(name, (sys.executable, "-S", "-c", code), tmp_path / f"{name}.log")


def run(launcher: launch.Launcher, jobs: list[launch.Job]) -> dict[str, str | None]:
    outcomes: dict[str, str | None] = {}
    started: list[str] = []

    def done(outcome: launch.Outcome) -> None:
        outcomes[outcome.job.name] = outcome.reason

    launcher.run(jobs, started.append, done)
    assert sorted(started) == sorted(job.name for job in jobs)
    return outcomes


REFUSES = (
    "import sys; print('sparcl: the first line', file=sys.stderr); print('sparcl: no data here', file=sys.stderr); "
)
JOBS = {
    "good": "print('well')",
    "refused": REFUSES + "sys.exit(2)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "silent": "import sys; sys.exit(3)",
}


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_failure_stops_no_other_and_is_told_in_one_line(tmp_path: Path, at_once: int) -> None:
    outcomes = run(launch.Local(at_once), [python(tmp_path, name, code) for name, code in JOBS.items()])
    assert outcomes == {
        "good": None,
        "refused": "no data here",
        "killed": "killed by SIGKILL",
        "silent": f"exit code 3, see {tmp_path / 'silent.log'}",
    }
    assert (tmp_path / "good.log").read_text() == "well\n"


def test_submitit_runs_the_same_jobs(tmp_path: Path) -> None:
    launcher = launch.Cluster(tmp_path / "submitit", cluster="local")
    assert run(launcher, [python(tmp_path, "refused", JOBS["refused"])]) == {"refused": "no data here"}


def stand_in_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> None:
    """A machine that has SLURM's commands, of which sbatch runs the given shell script."""
    for name, script in {"sbatch": sbatch, "srun": "exit 1"}.items():
        tool = folder / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(("script", "last"), [("echo one >&2; echo two >&2; exit 1", "two"), ("exit 1", "no reason")])
def test_what_a_cluster_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, last: str
) -> None:
    stand_in_cluster(tmp_path, monkeypatch, script)
    code, _, errors = command(capsys, write(tmp_path, REAL), "--launcher", "slurm", "--out", tmp_path / "out")
    assert (code, len(errors)) == (2, 1)
    assert last in errors[0]


def test_no_more_run_side_by_side_than_asked_for(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; me = sys.argv[0]; "
        f"d = {str(tmp_path / 'alive')!r}; os.makedirs(d, exist_ok=True); f = os.path.join(d, str(os.getpid())); "
        "open(f, 'w').close(); print(len(os.listdir(d))); time.sleep(0.5); os.remove(f)"
    )
    jobs = [python(tmp_path, f"job{i}", code) for i in range(5)]
    assert set(run(launch.Local(2), jobs).values()) == {None}
    assert max(int(job.log.read_text()) for job in jobs) == 2


def test_a_sweep_that_is_stopped_asks_its_runs_to_stop(tmp_path: Path) -> None:
    """SIGTERM to the sweep alone reaches the run, which has time to end well; the code is that of a stopped program."""
    saves = (
        "import signal, sys, time\n"
        "def save(*_): print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('running', flush=True); time.sleep(60)"
    )
    log = tmp_path / "job.log"

    def terminate_when_running() -> None:
        while not (log.exists() and "running" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate_when_running, daemon=True).start()
    with pytest.raises(SystemExit) as left:
        launch.Local().run([launch.Job("job", (sys.executable, "-S", "-c", saves), log)], print, print)
    assert left.value.code == 143
    assert log.read_text() == "running\nsaved\n"


def test_an_attempt_that_has_no_time_left_stops_its_run_and_queues_again(tmp_path: Path) -> None:
    attempt = launch.Attempt(python(tmp_path, "job", "import time; time.sleep(60)"))
    attempt.process = attempt.job.start()
    again = attempt.checkpoint()
    assert attempt.process.poll() == -signal.SIGTERM
    assert again.function.job == attempt.job


def test_a_run_queues_again_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's own handler of a time-out, over a hundred hours of a job of one hour; it counts down to giving up."""
    stand_in_cluster(tmp_path, monkeypatch, f"cp $1 {tmp_path}/submitted.sh; echo Submitted batch job 7")
    monkeypatch.setattr(SlurmJobEnvironment, "_requeue", lambda _, countdown: left.append(countdown))
    (job,) = launch.Cluster(tmp_path / "work")._submit([python(tmp_path, "job", "pass")])
    paths, left = job[1].paths, []
    for _ in range(100):
        delayed = DelayedSubmission.load(paths.submitted_pickle)
        handler = SignalHandler(SlurmJobEnvironment(), paths, delayed)
        handler._start_time -= 3600
        with pytest.raises(SystemExit):
            handler.checkpoint_and_try_requeue(signal.SIGUSR2)
    assert len(left) == 100
    assert left[0] - left[-1] == 99  # they were time-outs, not preemptions, which do not count
    assert "#SBATCH --requeue" in (tmp_path / "submitted.sh").read_text().splitlines()


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("1:30:00", 90), ("0:00:01", 1), ("10:00:59", 601)])
def test_time_limits(text: str, expected: int) -> None:
    assert launch.minutes(text) == expected


@pytest.mark.parametrize("text", ["0", "", "1:30", "1h", "-5", "0:00:00"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="use minutes or H:MM:SS"):
        launch.minutes(text)


def test_launchers_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs 0 is not allowed"):
        launch.Local(0)
    with pytest.raises(ConfigError, match="memory '4 gigs' is not allowed"):
        launch.Cluster(tmp_path, memory="4 gigs", cluster="local")
    with pytest.raises(ConfigError, match="jobs 0 is not allowed"):
        launch.Cluster(tmp_path, at_once=0, cluster="local")


# --- a sweep of real runs --------------------------------------------------------------------------------------

REAL = """
[base]
stream = "seq-digits"
sparsifier = "dense"
model = "mlp"
width = 8
epochs = 1
limit_per_class = 20
threads = 1

[[runs]]
base = { method = "finetune" }

[[runs]]
base = { stream = "seq-mnist", data = "/nowhere", method = "finetune" }
"""


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, standard output, lines on standard error of `sparcl sweep`."""
    code = _main(["sweep", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def test_a_sweep_whose_first_runs_fail_alike_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data that is not there fails every run, a process each."""
    missing = """
[base]
stream = "seq-mnist"
data = "/nowhere"
method = "finetune"
sparsifier = "dense"
threads = 1

[grid]
seed = [0, 1, 2, 3, 4]
"""
    code, said, errors = command(capsys, write(tmp_path, missing), "--out", tmp_path / "out")
    assert code == 2
    assert said.count("FAILED: ") == 3
    assert len(errors) == 1
    assert re.fullmatch(r"sparcl: the first 3 runs failed alike: .*/nowhere.*; 2 were not begun", errors[0])


def test_a_sweep_runs_skips_and_tells_of_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path, REAL), tmp_path / "out"
    code, said, errors = command(capsys, file, "--out", out)
    assert code == 2
    assert errors == ["sparcl: 1 of 2 runs failed, listed above; the same command tries them again"]
    assert "2 runs: 0 finished, 0 begun before, 2 new" in said
    assert re.search(r"\] seq-mnist-finetune-dense-\S+-seed0: FAILED: .*/nowhere", said)
    assert "Class-IL %" in said  # the table of what did finish
    result = out / "seq-digits-finetune-dense-seed0" / "result.json"
    when = result.stat().st_mtime_ns
    assert json.loads(result.read_text())["benchmark"] == "seq-digits"

    file.write_text(REAL.partition('[[runs]]\nbase = { stream = "seq-mnist"')[0])
    code, said, errors = command(capsys, file, "--out", out)
    assert (code, errors) == (0, [])
    assert "1 runs: 1 finished, 0 begun before, 0 new" in said
    assert result.stat().st_mtime_ns == when

    for lost in (result, result.with_name("model.safetensors")):
        lost.write_bytes(lost.read_bytes()[:-3])
        code, said, errors = command(capsys, file, "--out", out)
        assert (code, errors) == (0, []), "its checkpoint is whole"
        assert "it is tried again" in said
        assert "1 runs: 0 finished, 1 begun before, 0 new" in said
        assert "left out" not in said
    shutil.rmtree(result.with_name("checkpoint"))
    result.write_text("{}")
    code, said, _ = command(capsys, file, "--out", out)
    assert code == 2
    assert "there is no checkpoint to write it again from: remove" in said
    shutil.rmtree(result.parent)
    assert command(capsys, file, "--out", out)[0] == 0

    file.write_text(REAL.replace("epochs = 1", "epochs = 2"))
    code, said, errors = command(capsys, file, "--out", out)
    assert (code, said, len(errors)) == (2, "", 1)
    assert "holds a run with epochs = 1, but 2 is asked for" in errors[0]


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, REAL)
    for arguments in (
        [tmp_path / "absent.toml"],
        [file, "--launcher", "moon"],
        [file, "--partition", "x"],
        [file, "--time", "9"],
    ):
        code, said, errors = command(capsys, *arguments, "--out", tmp_path / "out")
        assert (code, said, len(errors)) == (2, "", 1)
    file = write(tmp_path, REAL.split("[[runs]]")[0])
    code, said, errors = command(capsys, file, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (code, said, len(errors)) == (2, "", 1)
    assert "reads data; leave it out" in errors[0]
    assert not (tmp_path / "out").exists()
    file = write(tmp_path, REAL)
    (tmp_path / "a file").touch()
    code, said, errors = command(capsys, file, "--out", tmp_path / "a file")
    assert (code, said, len(errors)) == (2, "", 1)


def test_a_finished_run_given_with_another_data_folder_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "damage", lambda _: None)
    file = write(tmp_path, REAL.split("[[runs]]")[0].replace("digits", "mnist"))
    cells = sweep.read(file)
    (cell,) = cells
    directory = tmp_path / "out" / cell.name
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(cell.experiment.to_toml() + '\n[layer_choice]\n"a" = "native"\n')
    (directory / "result.json").write_text("{}")
    moved = sweep.read(file, "/elsewhere")
    assert sweep.execute(moved, tmp_path / "out", launch.Local(), Console(quiet=True)) == []
