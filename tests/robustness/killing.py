"""Killed or stopped at random moments, `--resume`, and again until done; then it must equal a run never stopped.

Each attempt is a forked process that runs the real command, so that a hundred of them need not import PyTorch each.

    python tests/robustness/killing.py --kills 100        (`make fault`)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparcl import kernels
from sparcl.checkpoint import files
from sparcl.main import _main
from sparcl.run import run as _loaded_before_forking  # noqa: F401
from sparcl.streams.digits import read_digits

DIGITS = ["run", "seq-digits", "--limit-per-class", "60", "--width", "8", "--threads", "1"]
RUN = [*DIGITS, "--epochs", "3"]
LONG = [*DIGITS, "--epochs", "2", "--batch-size", "8"]
"""Five tasks of 7 steps each; and of 25 each, in which the mask is updated twice."""

VARIANTS = {
    "derpp, sparcl": (),
    **{f"{name}, sparcl": ("--method", name) for name in ("icarl", "lwf", "fdr", "agem")},
    "ewc, snip": ("--method", "ewc", "--sparsifier", "snip"),
    **{f"{name}, dense": ("--method", name, "--sparsifier", "dense") for name in ("packnet", "lps")},
    **{f"derpp, {name}": ("--sparsifier", name) for name in ("rigl", "set", "snip")},
    "derpp, sparcl in blocks": ("--pattern", "block"),
    "derpp, sparcl, adamw": (
        *("--optimizer", "adamw", "--lr-schedule", "cosine", "--warmup", "0.1", "--clip-grad-norm", "0.5"),
    ),
    "derpp, sparcl, averaged": ("--average", "0.2"),
    "derpp, a frozen part": ("--freeze", "0,1"),
    "derpp, latents": ("--freeze", "0,1", "--latents", "int8"),
    "derpp, sparcl in micro-batches": ("--micro-batch", "5"),
    "derpp, balanced over classes, of so many bytes": ("--buffer-policy", "balanced", "--buffer-bytes", "4kB"),
    "er, jpegs of so many bytes": ("--method", "er", "--buffer-storage", "jpeg", "--buffer-bytes", "30kB"),
}
"""Methods, sparsifiers and optimizers with a state of their own."""

ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,), signal.SIGHUP: (129, -1)}
"""How a run is ended, and with which codes it may end: at once where nothing has begun, else by its own."""


def prepare() -> None:
    """Import now what a run would import: scikit-learn with its digits, and what PyTorch's optimizers bring along."""
    torch.set_num_threads(1)
    read_digits()
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def backends() -> list[str]:
    """Those that this machine has."""
    return ["reference", *(["native"] if kernels.available() else [])]


def start(arguments: list[str], output: Path, before: Callable[[], None] = lambda: None) -> int:
    """The command in a forked process, after `before` there; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
            before()
            code = _main(arguments)
        except KeyboardInterrupt:  # before the command began
            code = 130
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_at_most(pid: int, seconds: float) -> int | None:
    """Exit code if it ends within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


@dataclass
class Attempts:
    """What happened to one run."""

    kills: int = 0
    resumed_at: list[int] = field(default_factory=list)


def kill_until_done(
    arguments: list[str],
    out: Path,
    rng: random.Random,
    longest: float,
    output: Path,
    ends: Sequence[signal.Signals] = (signal.SIGKILL,),
) -> Attempts:
    """Start, end in one of the ways at a random moment within `longest` seconds, resume; until one gets to the end.

    The seconds grow a little with every kill, should the machine have become slower.
    """
    attempts = Attempts()
    while True:
        resume = ["--resume"] if attempts.kills else []
        pid = start([*arguments, "--out", str(out), *resume], output)
        code = wait_at_most(pid, rng.uniform(0, longest * 1.05**attempts.kills))
        how = rng.choice(list(ends))
        if code is None:
            os.kill(pid, how)
            code = wait(pid)
        if code == 0:
            attempts.resumed_at = [e["step"] for e in events(out) if e["event"] == "run.resume"]
            return attempts
        assert code in ENDS[how], f"{how.name}: exit code {code}: {output.read_text()[-2000:]}"
        attempts.kills += 1


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def newest(out: Path) -> Path:
    """The latest checkpoint of a run."""
    folder: Path = out / "checkpoint" / (out / "checkpoint" / "latest").read_text().strip()
    return folder


def lasting(out: Path) -> dict[str, Any]:
    """All of a run's records that must not depend on how often it was killed: times and peak memory are left out."""
    result = json.loads((out / "result.json").read_text())
    del result["seconds"], result["memory"]["peak_rss_bytes"]
    state = json.loads((newest(out) / files.STATE).read_text())
    for measured in ("clock", "events", "events_sha256", "peak_rss_bytes"):
        del state["run"][measured]
    happened = [{k: v for k, v in e.items() if k != "seconds"} for e in events(out) if e["event"] != "run.resume"]
    return {
        "result": result,
        "events": happened,
        "state": state,
        "tensors": (newest(out) / files.TENSORS).read_bytes(),
        "model": (out / "model.safetensors").read_bytes(),
        "config": (out / "config.toml").read_text(),
    }


def trials(
    folder: Path,
    backend: str,
    seed: int,
    every: str,
    options: Sequence[str] = (),
    ends: Sequence[signal.Signals] = (signal.SIGKILL,),
    run: Sequence[str] = RUN,
) -> Iterator[Attempts]:
    """Killed runs without end, each checked against one that was never stopped."""
    arguments = [*run, *options, "--backend", backend, "--checkpoint-every", every]
    output, whole = folder / f"{backend}.txt", folder / f"{backend}-whole"
    began = time.monotonic()
    code = wait(start([*arguments, "--out", str(whole)], output))
    assert code == 0, f"exit code {code}: {output.read_text()[-2000:]}"
    longest = 0.7 * (time.monotonic() - began)
    moved = sum(e["event"] == "tdm.update" for e in events(whole))
    assert run is not LONG or "--sparsifier" in options or moved > 1, "no mask is updated in these runs"
    expected, rng, number = lasting(whole), random.Random(seed), 0
    while True:
        number += 1
        out = folder / f"{backend}-killed-{number}"
        attempts = kill_until_done(arguments, out, rng, longest, output, ends)
        found = lasting(out)
        for part, value in expected.items():
            assert found[part] == value, f"{out}: {part} differs after {attempts.kills} kills"
        yield attempts


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill runs at random moments; compare with runs never stopped.")
    parser.add_argument("--kills", type=int, default=240, help="over all backends and variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=backends(), nargs="*", default=backends())
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    prepare()
    each = -(-arguments.kills // (len(arguments.backend) * len(arguments.variant)))
    later = 0
    for backend in arguments.backend:
        for variant in arguments.variant:
            kills, runs, steps = 0, 0, []
            with tempfile.TemporaryDirectory() as folder:
                for attempts in trials(
                    Path(folder), backend, arguments.seed, "3", VARIANTS[variant], tuple(ENDS), LONG
                ):
                    kills, runs, steps = kills + attempts.kills, runs + 1, steps + attempts.resumed_at
                    if kills >= each:
                        break
            later += sum(step > 0 for step in steps)
            print(
                f"{backend}, {variant}: ended {kills} times over {runs} runs, {len(steps)} resumes noted,"
                f" {sum(step > 0 for step in steps)} of them at a step above zero; every run equal to the"
                " uninterrupted one",
                flush=True,
            )
    assert later > 0


if __name__ == "__main__":
    main()
