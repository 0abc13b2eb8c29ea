"""A budget of memory: what is given up for it, in which order, and that it holds in a process that has no more."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparcl
from sparcl.errors import CheckpointError, ConfigError
from sparcl.run import trial
from sparcl.run.choosing import FREE, Choice, Costs, choices, choose
from sparcl.run.experiment import Experiment
from sparcl.run.fit import Fit, over
from sparcl.run.resume import as_fitted
from sparcl.streams.task import Samples

ROOT = Path(__file__).parents[2]
MB = 10**6
RUN = ("run", "seq-digits", "--limit-per-class", "40", "--width", "8", "--threads", "1", "--steps", "5")

WATCHED = """
import os, resource, sys
limit = int(sys.argv[1])
child = os.fork()
if not child:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
_, status, usage = os.wait4(child, 0)
print("PEAK", usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Started small, since the peak that the system tells of a child begins with its parent's."""


def limited(limit: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Python with these arguments in a process that gets no more writable memory; and its peak resident memory."""
    command = [sys.executable, "-S", "-c", WATCHED, str(limit), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    told = re.search(r"^PEAK (\d+)$", done.stdout, re.MULTILINE)
    assert told is not None, done.stderr
    return done, int(told[1])


def run(limit: int, out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """`sparcl run` with a budget of so many bytes, in a process that gets no more."""
    return limited(limit, "-m", "sparcl", *RUN, "--max-memory", f"{limit // MB}MB", "--out", str(out), *options)


# --- the order ----------------------------------------------------------------------------------------------------


def order(asked: Choice, *free: str) -> list[tuple[Any, ...]]:
    return [
        (c.buffer, c.batch if c.micro is None else (c.batch, c.micro), c.sparsity, c.packed)
        for c in choices(asked, free, 50)
    ]


def test_storage_gives_way_before_sparsity_before_the_batch_before_whole_passes_before_the_buffer() -> None:
    asked = Choice(16, 0.9, 100)
    assert order(asked, *FREE)[:6] == [
        (100, 16, 0.9, False),
        (100, 16, 0.9, True),
        (100, 16, 0.95, False),
        (100, 16, 0.95, True),
        (100, 8, 0.9, False),
        (100, 8, 0.9, True),
    ]
    assert [sizes for _, sizes, *_ in order(asked, "batch_size", "micro_batch", "buffer_size")] == 2 * [
        *(16, 8, (8, 8), (8, 4), (8, 2), (4, 2), (2, 2))
    ]
    assert order(asked, "batch_size", "buffer_size") == [
        *((100, batch, 0.9, False) for batch in (16, 8, 4, 2)),
        *((50, batch, 0.9, False) for batch in (16, 8, 4, 2)),
    ]


def test_a_batch_or_a_micro_batch_that_is_named_stays() -> None:
    def sizes(asked: Choice, *free: str) -> list[Any]:
        return [size for _, size, *_ in order(asked, *free)]

    assert sizes(Choice(32, 0.9, 100), "micro_batch") == [32, (32, 32), (32, 16), (32, 8), (32, 4), (32, 2)]
    assert sizes(Choice(16, 0.9, 100, micro=4), "batch_size") == [(16, 4), (8, 4), (4, 4), (2, 2)]
    assert sizes(Choice(4, 0.9, 100), "batch_size", "micro_batch") == [4, (4, 4), (4, 2), (2, 2)]
    assert sizes(Choice(1, 0.9, 100), "batch_size") == [1]


def test_what_is_named_stays_as_it_is() -> None:
    assert order(Choice(8, 0.9, 100)) == [(100, 8, 0.9, False)]
    assert order(Choice(8, None, None), "sparsity", "buffer_size") == [(None, 8, None, False)]
    assert order(Choice(8, 0.98, 100), "sparsity") == [(100, 8, 0.98, False)]


class Made(Costs):
    """100 MB, and 1 MB a sample at a time (3 MB above 16, which few do not show), a third of it in micro-batches; .95
    saves 5 MB."""

    def __init__(self, most: float = float("inf")) -> None:
        self.most, self.asked_for = most, []  # type: ignore[var-annotated]
        self.trials, self.failed, self.before, self.to_come, self.buffer_bytes, self.packing = {}, {}, None, 0, None, -1
        samples = Samples(torch.zeros(1000, 1), torch.zeros(1000).long())
        task = [type("Task", (), {"train": samples, "test": None})]
        self.stream = type("Stream", (), {"tasks": task})()

    def attempt(self, choice: Choice) -> trial.Trial:
        rows, sparsity = choice.rows, choice.sparsity
        self.asked_for.append((rows, sparsity))
        steps = (3 if rows > 16 else 1) * rows * MB // (3 if choice.micro else 1)
        peak = 100 * MB + steps - (5 * MB if sparsity == 0.95 else 0)
        return trial.Trial(100 * MB, peak, 0, 1, 0, 1000)


WHOLE = tuple(name for name in FREE if name != "micro_batch")


@pytest.mark.parametrize(
    ("budget", "batch", "sparsity"),
    [(250, 32, 0.9), (196, 32, 0.95), (130, 16, 0.9), (115, 16, 0.95), (112, 8, 0.9), (105, 4, 0.95)],
)
def test_what_fits_is_tried_before_it_is_chosen(budget: int, batch: int, sparsity: float) -> None:
    costs = Made()
    found = choose(costs, Choice(32, 0.9, 200), WHOLE, budget * MB, 10)
    assert (found.batch, found.sparsity, found.buffer, found.micro) == (batch, sparsity, 200, None)
    assert (batch, sparsity) in costs.asked_for


@pytest.mark.parametrize(
    ("budget", "batch", "micro", "sparsity"),
    [(112, 8, None, 0.9), (106, 8, None, 0.95), (105, 8, 8, 0.9), (98.5, 8, 4, 0.95), (97.7, 8, 2, 0.95)],
)
def test_passes_are_parted_where_a_small_batch_is_not_enough(
    budget: float, batch: int, micro: int | None, sparsity: float
) -> None:
    costs = Made()
    found = choose(costs, Choice(32, 0.9, 200), FREE, int(budget * MB), 10)
    assert (found.batch, found.micro, found.sparsity) == (batch, micro, sparsity)
    assert (found.rows, sparsity) in costs.asked_for


def test_what_would_fit_is_named_and_does() -> None:
    for free, told, rows in ((WHOLE, "batch size 2", [2]), (FREE, "batch size 2, micro-batches of 2", [2, 4])):
        with pytest.raises(ConfigError, match=rf"even {told}, sparsity 0\.95") as refused:
            choose(Made(), Choice(32, 0.9, 200), free, 90 * MB, 10)
        enough = re.search(r"; (\d+)MB would do, all as asked about (\d+)MB", str(refused.value))
        assert enough is not None
        assert choose(Made(), Choice(32, 0.9, 200), free, int(enough[1]) * MB, 10).rows in rows


def test_no_second_batch_is_tried_that_could_not_fit() -> None:
    costs = Made()
    assert choose(costs, Choice(32, 0.9, 200), FREE, 107 * MB, 10).batch == 8  # .95
    assert max(batch for batch, _ in costs.asked_for) == 8


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back here")
def test_a_run_stays_within_a_budget_that_is_the_limit_of_its_process(tmp_path: Path) -> None:
    small = ("-m", "sparcl", *RUN, "--max-memory", "300MB", "--out", str(tmp_path / "a"))
    done, _ = limited(1000 * MB, *small)  # a system that gives no more ends it before it can tell
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    told = re.search(r"max memory 300.0 MB is too little: even .*; (\d+)MB would do", line)
    assert told is not None, line
    assert not (tmp_path / "a").exists()

    budget = int(told[1]) * MB
    done, peak = run(budget, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "given up for it: " in done.stdout
    assert "exceeded" not in done.stdout
    record = json.loads((tmp_path / "a" / "result.json").read_text())
    assert peak <= budget
    assert record["memory"]["budget_bytes"] == budget
    assert record["memory"]["peak_rss_bytes"] == pytest.approx(peak, rel=0.03)  # the system forgets what was set back

    settings = tmp_path / "a" / "config.toml"
    again = ("-m", "sparcl", "run", "--config", str(settings), "--out", str(tmp_path / "b"))
    done, peak = limited(budget, *again)  # what was chosen, not a new choice
    assert "trying" not in done.stdout
    assert peak <= budget
    other = json.loads((tmp_path / "b" / "result.json").read_text())
    assert other["model_sha256"] == record["model_sha256"]

    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "result.json").unlink()
    for where in ("a", "c"):  # finished; and as if it had been stopped at its end
        done, peak = run(budget, tmp_path / where, "--resume")
        assert done.returncode == 0, done.stderr
        assert "trying" not in done.stdout


IN_PYTHON = """
import sys, torch
torch.set_num_threads(1)
import sparcl
from sparcl import nn
from sparcl.cost.memory import resident_bytes
torch.manual_seed(3)
before = torch.random.get_rng_state()
model = nn.ConvNet(10, channels=3, width=8)
weights = [p.clone() for p in model.parameters()]
torch.manual_seed(3)
found = sparcl.fit(model, (3, 16, 16), 10, "2GB", seconds=1.5, samples=100, batch_size=8)
assert torch.equal(before, torch.random.get_rng_state())
assert all(map(torch.equal, weights, model.parameters()))
print(found)
print(found.options())
assert abs(found.peak_bytes - resident_bytes("VmHWM")) < 60e6, (found.peak_bytes, resident_bytes("VmHWM"))
for memory, named in (
    *[("100MB", {}), ("2GB", {"sparsty": 0.9}), ("lots", {}), ("2GB", {"device": "cuda"})],
    *[("2GB", {"max_memory": "1GB"}), ("2GB", {"max_seconds": 5.0}), ("2GB", {"steps": 5}), ("2GB", {"samples": 0})],
):
    try:
        sparcl.fit("convnet", (3, 16, 16), 10, memory, width=8, **named)
    except sparcl.SparclError as error:
        print("refused:", error)
try:
    sparcl.fit(model, (3, 16, 16), 10, "2GB", width=8)
except sparcl.SparclError as error:
    print("refused:", error)
named = {"batch_size": 8, "buffer_size": 8, "backend": "reference"}
parts = [
    sparcl.fit(model, (3, 16, 16), 10, "2GB", **named, **more).parts["weights"]
    for more in ({}, {"optimizer": "adam"}, {"average": 0.1}, {"freeze": "0"})
]
print(parts[1] > 1.5 * parts[0], parts[2] > 1.2 * parts[0], parts[3] < parts[0])
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back here")
def test_fit_in_python() -> None:
    done = subprocess.run([sys.executable, "-c", IN_PYTHON], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "<Fit: batch size 8, buffer size 200, sparsity 0.9, pattern unstructured, max seconds 1.5;"
    assert re.fullmatch(r"  [\d.]+ MB expected of 2,000.0: import [\d.]+, data 0.1, weights 0.0, .*;", lines[1])
    assert lines[2] == "  given up: nothing>"
    options = {"batch_size": 8, "buffer_size": 200, "sparsity": 0.9, "pattern": "unstructured", "max_seconds": 1.5}
    assert lines[3] == str(options)
    assert re.match("refused: max memory 100.0 MB is too little: even batch size .* would do, all as asked", lines[4])
    assert re.match("refused: fit: unknown setting 'sparsty'.*did you mean sparsity", lines[5])
    assert lines[6].startswith("refused: max memory of 'lots' is not allowed; use a number of bytes")
    assert lines[8:13] == [
        "refused: max_memory is not taken here: name it memory",
        "refused: max_seconds is not taken here: name it seconds",
        "refused: steps has no effect on what fits: leave it out",
        "refused: samples 0 is not allowed; use 1 or more",
        "refused: width has no effect on what fits: leave it out",
    ]
    assert lines[13] == "True True True"
    assert "cuda" in lines[7]
    assert len(lines) == 14


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["450MB", "500MB"])
def test_resnet18_within_its_limit(memory: str) -> None:
    limit = int(memory.removesuffix("MB")) * MB
    done, peak = limited(2 * limit, str(ROOT / "benchmarks" / "fit.py"), "--memory", memory, "--width", "32")
    assert done.returncode == 0, done.stderr
    assert "within" in done.stdout
    assert peak <= limit


# --- around it ----------------------------------------------------------------------------------------------------


def test_a_trial_leaves_the_generators_and_the_data_alone() -> None:
    from sparcl import streams
    from sparcl.run import build

    asked = Experiment(stream="seq-digits", width=4, limit_per_class=20, steps=trial.STEPS).resolve()
    stream, state = build.stream(asked), torch.random.get_rng_state()

    found = trial.run(lambda: build.learner(dataclasses.replace(asked, batch_size=4), stream), stream.tasks[:2], 4)
    assert found is not None
    assert min(found.training, found.before) > 0  # the process that runs the tests may shrink meanwhile
    assert found.sample == 64 + 8 + 10 * 4  # the image, its label, ten logits
    assert torch.equal(state, torch.random.get_rng_state())
    assert stream.fingerprint == build.stream(asked).fingerprint
    held = trial.data_bytes(stream)
    assert held == sum(len(t.train) + len(t.test) for t in stream if t.test is not None) * (64 + 8)
    assert len(trial.short(streams.seq_digits()[0], 4).train) == 64


def test_memory_that_runs_out_is_no_trial() -> None:
    def make() -> Any:
        raise MemoryError

    assert trial.run(make, [], 4) is None


def test_a_fit_says_what_it_costs_in_three_lines() -> None:
    parts = dict.fromkeys(("import", "data", "weights", "buffer", "activations", "workspace"), 10 * MB)
    found = Fit(100 * MB, 8, 4, 200, None, "jpeg", 0.95, "block", None, parts, ("sparsity 0.95, not 0.9: less",))
    assert repr(found).count("\n") == 2
    assert found.peak_bytes == 60 * MB
    assert found.options()["buffer_storage"] == "jpeg"
    assert "max_seconds" not in found.options()
    assert found.options()["micro_batch"] == 4


def test_a_peak_above_the_budget_is_said() -> None:
    assert over({"budget_bytes": None, "peak_rss_bytes": 5}) is None
    assert over({"budget_bytes": 5, "peak_rss_bytes": 5}) is None
    assert "was exceeded: 2.0 MB at the peak, 1.0 MB asked" in str(over({"budget_bytes": MB, "peak_rss_bytes": 2 * MB}))


def test_what_was_chosen_is_taken_up_unless_it_is_named_or_of_another_budget() -> None:
    asked = Experiment(stream="seq-digits", max_memory="300MB").resolve()
    saved = {"max_memory": "300MB", "fitted": {"import": 1}, "batch_size": 4, "sparsity": 0.95, "buffer_size": 20}
    assert as_fitted(asked, saved, ()).batch_size == 4
    assert as_fitted(asked, saved, ()).buffer_size == 20
    assert as_fitted(asked, saved, {"batch_size"}).batch_size == 32
    assert as_fitted(asked, {**saved, "max_memory": "400MB"}, ()) is asked
    assert as_fitted(asked, {**saved, "fitted": {}}, ()) is asked
    for name, value in (("batch_size", 0), ("batch_size", "4"), ("fitted", [1]), ("sparsity", {})):
        with pytest.raises(CheckpointError, match="chosen for max memory is not allowed"):
            as_fitted(asked, {**saved, name: value}, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_memory": "lots"}, "max memory of 'lots' is not allowed"),
        ({"max_memory": 0}, "max memory of 0 is not allowed"),
        ({"max_memory": "1GB", "device": "cuda"}, "not of cuda"),
        ({"fitted": {"import": 1}}, "fitted goes with max memory"),
    ],
)
def test_a_bad_budget_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_dict({"stream": "seq-digits", **values})


def network(classes: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes)
    )


def test_bytes_that_are_no_pictures_are_fitted_as_they_are() -> None:
    found = sparcl.fit(network(), (72,), 6, "8GB", samples=20)
    assert found.buffer_storage in (None, "raw")


@pytest.mark.parametrize("shape", [8, (2, -6, 6), "2,6,6", (2.0, 6, 6)])
def test_a_shape_that_is_none_is_one_line(shape: Any) -> None:
    with pytest.raises(ConfigError, match="input shape"):
        sparcl.fit(network(), shape, 6, "8GB", dtype="float32")


class Locked(nn.Sequential):
    """A model that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(*network())
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [(None, 6, "model None"), (network(), "6", "classes '6'"), (Locked(), 6, "the model cannot be copied")],
)
def test_what_cannot_be_fitted_is_one_line(model: Any, classes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        sparcl.fit(model, (2, 6, 6), classes, "8GB", dtype="float32")
    assert "\n" not in str(refused.value)
