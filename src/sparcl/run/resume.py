"""What a run adds to the Learner's checkpoint, and what must be the same for it to go on."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparcl
from sparcl import kernels
from sparcl.checkpoint import Loaded, Store, checks
from sparcl.errors import CheckpointError, ConfigError, SparclError
from sparcl.learner import Learner
from sparcl.run.experiment import Experiment
from sparcl.run.record import Extent
from sparcl.streams.task import Stream

PARTS = (
    *("experiment", "fingerprint", "ledger", "clock", "matrix"),
    *("events", "events_sha256", "position", "losses", "masks", "peak_rss_bytes", "computed_with"),
)

COMPUTED_WITH = {
    "threads": "threads",
    "torch": "PyTorch",
    "torch_isa": "PyTorch's instruction set",
    "isa": "the engine's instruction set",
    "cpu": "CPU",
    "sparcl": "sparcl",
    "numpy": "NumPy",
}
"""What the bits of a run depend on beside its settings, and what it is called. Checkpoints of before know two of it."""

MAY_DIFFER = ("data", "init", "layer_choice", "pace")
"""Settings that may change: where data and first weights lie (what they are may not), and what the checkpoint itself
decides."""


def settings(experiment: Experiment) -> dict[str, Any]:
    """An experiment's settings as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(experiment)))
    return values


def computed_with() -> dict[str, Any]:
    """What the bits of a run depend on beside its settings: as in `environment` of result.json."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "isa": kernels.isa() if kernels.available() else None,
        "cpu": _cpu_name(),
        "sparcl": sparcl.__version__,
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def changes(was: Mapping[str, Any]) -> str | None:
    """What computes otherwise now than what a checkpoint was computed with, in words; None: nothing that it knows."""
    now = computed_with()
    told = [f"{COMPUTED_WITH[k]} {was[k]} -> {now[k]}" for k in now if k in was and was[k] != now[k]]
    return ", ".join(told) or None


def load(checkpoints: Path) -> Loaded | None:
    """A run's newest whole checkpoint; None where there is none at all.

    Raises:
        CheckpointError: there are some, but none can be used; it says what is left to do.
    """
    try:
        return Store(checkpoints).load()
    except CheckpointError as error:
        raise CheckpointError(f"{error}; to begin anew, choose another --out, or remove {checkpoints}") from error


def extent(part: Mapping[str, Any]) -> Extent:
    """What events.jsonl held when the checkpoint was made."""
    return Extent(part["events"], part["events_sha256"])


def run_part(loaded: Loaded) -> Mapping[str, Any]:
    """The run's own part of a checkpoint.

    Raises:
        CheckpointError: the checkpoint was saved by a Learner alone, or is not well formed.
    """
    part = loaded.state.get("run")
    if part is None:
        raise CheckpointError(f"checkpoint {loaded.name} is of a Learner alone; only `sparcl run` goes on from its own")
    if isinstance(part, dict):
        part.setdefault("events_sha256", None)  # as before it was kept
    checks.keys(part, PARTS, "the run")
    checks.integer(part["events"], "the length of events.jsonl")
    if not isinstance(part["events_sha256"], str | None):
        raise CheckpointError("the checksum of events.jsonl in the checkpoint is none")
    for name, value in checks.keys(part["position"], ("task", "epoch", "step"), "the position of events").items():
        checks.integer(value, f"the {name} of events")
    known = part["computed_with"]
    for name in checks.keys(known, known if isinstance(known, dict) else (), "what the run was computed with"):
        if name not in COMPUTED_WITH:
            raise CheckpointError(f"what the run was computed with in the checkpoint has the unknown {name!r:.80}")
    return checks.keys(part, PARTS, "the run")


def difference(
    there: Experiment, asked: Experiment, named: Collection[str], but: Collection[str] = MAY_DIFFER
) -> str | None:
    """The first setting, of others than `but`, in which a run that is there differs from what is asked, in words.

    None: in none. What the run chose by itself is no difference where it is not `named`.
    """
    known = settings(there)
    for name, value in settings(as_fitted(asked, known, named)).items():
        if name not in but and _differs(name, known[name], value):
            return f"{name} = {known[name]}, but {value} is asked for"
    return None


def _differs(name: str, saved: Any, asked: Any) -> bool:
    if name == "lazy" and None in (saved, asked):  # not asked for: as the run began
        return False
    return bool(saved != asked)


def check_same(experiment: Experiment, saved: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with other settings than those `saved`.

    Raises:
        CheckpointError: a setting differs; it is named, with both values.
    """
    ours = settings(experiment)
    if isinstance(saved, Mapping):  # what an earlier version does not name was as it is where nobody asks
        unnamed = settings(Experiment(experiment.stream))
        del unnamed["stream"]
        saved = {**unnamed, **saved}
    checks.keys(saved, ours, "the configuration")
    for name, value in ours.items():
        if name not in MAY_DIFFER and _differs(name, saved[name], value):
            raise CheckpointError(
                f"cannot resume with a changed configuration: {name} is {value!r:.80} here, but {saved[name]!r:.80}"
                f" in {where}"
            )


CHOSEN = ("batch_size", "micro_batch", "sparsity", "buffer_size", "buffer_storage", "fitted")
"""Settings that a budget of memory decides, where they are not named."""


def as_fitted(experiment: Experiment, saved: Any, named: Collection[str]) -> Experiment:
    """The experiment with what was chosen for its budget of memory when the run began; it is not chosen again.

    Raises:
        CheckpointError: what is saved is not allowed.
    """
    if experiment.max_memory is None or experiment.fitted or not isinstance(saved, Mapping):
        return experiment
    if not saved.get("fitted") or saved.get("max_memory") != experiment.max_memory:
        return experiment
    chosen = {name: saved[name] for name in CHOSEN if name in saved and name not in named}
    try:
        own = {"stream": experiment.stream, "method": experiment.method, "max_memory": experiment.max_memory}
        Experiment.from_dict({**own, **{k: v for k, v in chosen.items() if v is not None}})
        return dataclasses.replace(experiment, **chosen)
    except SparclError as error:
        raise CheckpointError(f"what was chosen for max memory is not allowed: {error}") from None


def resumed(experiment: Experiment, part: Mapping[str, Any]) -> Experiment:
    """The experiment as the checkpoint continues it: with the layers' choice of that time, and its way of reading.

    Raises:
        CheckpointError: a setting differs; it is named, with both values.
    """
    saved = part["experiment"]
    check_same(experiment, saved, "the checkpoint")
    try:
        lazy = saved.get("lazy") if experiment.lazy is None else experiment.lazy
        if not isinstance(lazy, bool | None):
            raise ConfigError(f"lazy must be true or false, not {lazy!r:.80}")
        return dataclasses.replace(experiment, layer_choice=saved.get("layer_choice", {}), lazy=lazy)
    except (SparclError, TypeError, AttributeError) as error:
        raise CheckpointError(f"what the checkpoint decides is not allowed: {error}") from None


def check_labels(learner: Learner, stream: Stream) -> None:
    """Refuse remembered samples that are not of this stream's classes or shape."""
    buffer = learner.method.buffer
    if buffer is None or buffer.inputs is None or buffer.labels is None:
        return
    checks.within(buffer.labels, "the buffer's labels", 0, stream.n_classes - 1)
    with checks.refusing("the buffer"):
        task = stream.tasks[0]
        seen = task if learner.latents is None else learner.latents.like(task, learner.device)
        buffer.check_inputs(seen.train.inputs)


def check_data(stream: Stream, part: Mapping[str, Any]) -> None:
    """Refuse other data than that of the checkpoint."""
    if part["fingerprint"] != stream.fingerprint:
        raise CheckpointError(
            f"cannot resume with other data: its fingerprint is {stream.fingerprint[:12]} here, but"
            f" {str(part['fingerprint'])[:12]} in the checkpoint"
        )
