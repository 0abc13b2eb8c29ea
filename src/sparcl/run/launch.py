"""Where the runs of a sweep go: processes of this machine, or jobs of a cluster through submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sparcl import regular
from sparcl.errors import ConfigError

LAUNCHERS = ("local", "slurm")
MOST_SAID = 1 << 16
"""Bytes from the end of what a job said that may hold its reason."""

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""How long a run that is asked to stop has to save its checkpoint."""
ENDLESS = sys.maxsize
"""How often a job may run out of time and queue again: submitit would give up at the fourth time."""


@dataclass(frozen=True)
class Job:
    """One process: its command, where its output goes (errors: beside it, `.err`), and the cores it computes on."""

    name: str
    command: tuple[str, ...]
    log: Path
    threads: int = 1

    @property
    def errors(self) -> Path:
        return self.log.with_suffix(".err")

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, in a session of its own: a signal to the sweep reaches it through the sweep alone.

        Raises:
            OSError: its output has no place: a link, a pipe, a full disk.
        """
        with regular.open_to_add(self.log) as log, regular.open_to_add(self.errors, anew=True) as errors:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=errors, start_new_session=True
            )

    def reason(self, code: int) -> str | None:
        """Why it failed, in one line; None if it did not."""
        if code == 0:
            return None
        if code < 0:
            known = {int(s): s.name for s in signal.Signals}
            return f"killed by {known.get(-code, f'signal {-code}')}"
        try:
            with regular.open_regular(self.errors, ours=True) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_SAID))
                lines = file.read(MOST_SAID).decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("sparcl: ")[:500] if said else f"exit code {code}, see {self.log}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `reason` is None if well."""

    job: Job
    reason: str | None
    seconds: float


Started = Callable[[str], None]
Done = Callable[[Outcome], None]


class Launcher(Protocol):
    """Runs jobs and tells of each as it starts and ends; one that fails stops no other."""

    at_once: int | None
    """Jobs side by side; None if that is not ours to decide."""
    threads: int | None
    """Of a job whose settings do not say; None: PyTorch's default."""

    def run(self, jobs: Sequence[Job], started: Started, done: Done) -> None: ...


class Local:
    """Processes of this machine, `at_once` side by side."""

    def __init__(self, at_once: int = 1) -> None:
        if at_once < 1:
            raise ConfigError(f"jobs {at_once} is not allowed; use 1 or more")
        self.at_once: int | None = at_once
        self.threads = None if at_once == 1 else max(1, (os.cpu_count() or 1) // at_once)  # each core once

    def run(self, jobs: Sequence[Job], started: Started, done: Done) -> None:
        assert self.at_once is not None
        waiting = list(jobs)
        running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
        with _terminated_as_interrupt():
            try:
                while waiting or running:
                    while waiting and len(running) < self.at_once:
                        job = waiting.pop(0)
                        try:
                            process = job.start()
                        except OSError as error:
                            done(Outcome(job, not_started(error), 0.0))
                            continue
                        running.append((job, process, time.monotonic()))
                        started(job.name)
                    for entry in [e for e in running if e[1].poll() is not None]:
                        running.remove(entry)
                        job, process, since = entry
                        done(Outcome(job, job.reason(process.returncode), time.monotonic() - since))
                    time.sleep(POLL_SECONDS)
            finally:
                stop([process for _, process, _ in running])


def not_started(error: OSError) -> str:
    """Why a job could not be started, in one line."""
    return f"it could not be started: {error.filename or 'its process'}: {error.strerror}"


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to save a checkpoint and end; after a grace period, end them."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for process in processes:
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _terminated_as_interrupt() -> Any:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does, with 143 and 129, so that its runs are asked to stop."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Attempt:
    """What a cluster runs for a job. When its time is up, it lets the run save itself and queues up again."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> tuple[str | None, float]:
        """Run the job; why it failed (None: it did not) and the seconds it took."""
        since = time.monotonic()
        try:
            self.process = self.job.start()
        except OSError as error:
            return not_started(error), 0.0
        while self.process.poll() is None:  # no wait(): `checkpoint` comes as a signal and must find no lock held
            time.sleep(POLL_SECONDS)
        return self.job.reason(self.process.returncode), time.monotonic() - since

    def checkpoint(self) -> Any:
        """For submitit: what to queue instead."""
        import submitit

        if self.process is not None:
            stop([self.process])
        return submitit.helpers.DelayedSubmission(Attempt(self.job))


class Cluster:
    """Jobs of a SLURM cluster, through submitit.

    Args:
        folder: for submitit's own files; every node must see it under the same path.
        at_once: jobs side by side; None: as many as the cluster gives.
        partition: where to queue; None: the cluster's default.
        minutes: of a job, until it saves itself and queues again, until the run is done.
        memory: of a job, as `4G`; None: the cluster's default.
        cluster: submitit's name of the executor; `local` runs the jobs here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        at_once: int | None = None,
        partition: str | None = None,
        minutes: int = 60,
        memory: str | None = None,
        cluster: str = "slurm",
    ) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError("launcher slurm needs submitit: pip install 'sparcl-edge[sweep]'")
        if memory is not None and not re.fullmatch(r"\d+[KMGT]?", memory):
            raise ConfigError(f"memory {memory!r} is not allowed; use a whole number and K, M, G or T, e.g. 4G")
        if at_once is not None and at_once < 1:
            raise ConfigError(f"jobs {at_once} is not allowed; use 1 or more")
        import submitit

        self.at_once = at_once
        self.threads: int | None = 1
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=ENDLESS)
        except RuntimeError:
            raise ConfigError("launcher slurm found no SLURM here (no sbatch); use --launcher local") from None
        slurm = {
            "slurm_partition": partition,
            "slurm_mem": memory,
            "slurm_array_parallelism": at_once,
            "slurm_additional_parameters": {"requeue": True},  # where the cluster's default is not to queue again
        }
        self.executor.update_parameters(
            name="sparcl", timeout_min=minutes, **{k: v for k, v in slurm.items() if v is not None}
        )

    def run(self, jobs: Sequence[Job], started: Started, done: Done) -> None:
        if not jobs:
            return
        self.executor.update_parameters(cpus_per_task=max(job.threads for job in jobs))
        submitted = self._submit(jobs)
        try:
            self._wait(submitted, started, done)
        except BaseException:
            for _, handle in submitted:
                handle.cancel()
            raise

    def _submit(self, jobs: Sequence[Job]) -> list[tuple[Job, Any]]:
        """As one array job; what the cluster refuses (a partition, a limit) is the user's to mend."""
        import submitit

        try:
            with contextlib.redirect_stderr(io.StringIO()), self.executor.batch():  # submitit repeats sbatch's words
                return [(job, self.executor.submit(Attempt(job))) for job in jobs]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            said = str(error).strip().splitlines() or ["sbatch failed and gave no reason"]
            raise ConfigError(f"the cluster refuses these jobs: {said[-1]}") from None

    def _wait(self, submitted: list[tuple[Job, Any]], started: Started, done: Done) -> None:
        waiting, begun = list(submitted), set()
        while waiting:
            for entry in list(waiting):
                job, handle = entry
                ended = handle.done()
                if job.name not in begun and (ended or job.log.exists()):
                    begun.add(job.name)
                    started(job.name)
                if ended:
                    waiting.remove(entry)
                    done(self._outcome(job, handle))
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _outcome(job: Job, handle: Any) -> Outcome:
        error = handle.exception()
        if error is not None:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Outcome(job, f"the job itself failed: {lines[-1].strip() if lines else type(error).__name__}", 0.0)
        return Outcome(job, *handle.result())


def minutes(text: str) -> int:
    """A time limit as the cluster writes it, minutes or H:MM:SS, in minutes (rounded up).

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"(\d+)|(\d+):([0-5]\d):([0-5]\d)", text)
    total = 0
    if match and match[1]:
        total = int(match[1])
    elif match:
        total = int(match[2]) * 60 + int(match[3]) + (match[4] != "00")
    if total < 1:
        raise ConfigError(f"time {text!r} is not allowed; use minutes or H:MM:SS, e.g. 90 or 1:30:00")
    return total
