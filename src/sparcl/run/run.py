"""`sparcl run`: an experiment from its settings to its records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import sparcl
from sparcl import kernels
from sparcl.config import Experiment
from sparcl.cost.clock import Clock
from sparcl.cost.flops import Ledger
from sparcl.cost.memory import memory
from sparcl.errors import ConfigError, SparclError
from sparcl.learner import Learner
from sparcl.nn.convert import backends, dense_state_dict
from sparcl.run import build
from sparcl.run.evaluate import AccuracyMatrix
from sparcl.run.progress import Progress, summary
from sparcl.run.record import EventLog, RunDirectory, finite, write_atomically
from sparcl.streams.task import Stream


def execute(
    experiment: Experiment, out: Path | None, *, resume: bool, checkpoint_every: str, console: Console
) -> dict[str, Any]:
    """Run an experiment and return its result.json.

    Raises:
        SparclError: anything the user can mend; no new run directory is left behind unless it holds a checkpoint.
    """
    experiment = experiment.resolve()
    directory = RunDirectory(out or Path("runs") / experiment.name)
    if directory.used and not resume:
        raise ConfigError(f"run directory {directory.path} is in use: add --resume to go on, or choose another --out")
    if directory.finished:
        console.print(f"{directory.path} is finished; nothing to do")
        result: dict[str, Any] = json.loads(directory.result.read_text(encoding="utf-8"))
        return result
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    stream = build.stream(experiment, _reading(console))
    run = Run(experiment, stream, directory, console)
    with _nothing_left_behind(directory):
        return run.execute()


class Run:
    """One run: the Learner, and those who look on."""

    def __init__(self, experiment: Experiment, stream: Stream, directory: RunDirectory, console: Console) -> None:
        self.experiment, self.stream, self.directory, self.console = experiment, stream, directory, console
        self.learner = build.learner(experiment, stream)
        self.experiment = dataclasses.replace(experiment, layer_choice=self.learner.layer_choice)
        self.training_stream = stream.merged() if self.learner.method.learns_all_at_once else stream
        self.ledger = Ledger(self.learner.model, self.learner.sparsifier.layers, stream.input_shape)
        self.clock = Clock()
        self.matrix = AccuracyMatrix(len(stream))
        assert experiment.epochs is not None
        self.progress = Progress(console, len(self.training_stream), experiment.epochs)
        self.learner.observers += [self.clock, self.ledger, self.progress]

    def execute(self) -> dict[str, Any]:
        """Learn every task, evaluating on all of them after each, and write the records."""
        self.directory.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory.config, self.experiment.to_toml())
        log = EventLog(self.directory.events)
        self.learner.observers.append(log)
        try:
            with self.progress:
                if not self.matrix.has_baseline:
                    self.matrix.set_baseline(self.learner.evaluate(self.stream.tasks))
                for task in self.training_stream.tasks[self.learner.learned :]:
                    self.learner.learn(task)
                    self._evaluate(log)
            result = self.result()
            self._save_model()
            log.write("run.end", {"class_il": result["class_il"], "task_il": result["task_il"]})
        finally:
            log.close()
        write_atomically(self.directory.result, json.dumps(finite(result), indent=2) + "\n")
        self.console.print(summary([result]))
        self.console.print(f"records in {self.directory.path}", highlight=False)
        return result

    def _evaluate(self, log: EventLog) -> None:
        accuracy = self.learner.evaluate(self.stream.tasks)
        self.matrix.add(accuracy)
        seen = self.learner.learned if len(self.training_stream) > 1 else len(self.stream)
        so_far = dataclasses.replace(
            accuracy,
            class_il=None if accuracy.class_il is None else accuracy.class_il[:seen],
            task_il=accuracy.task_il[:seen],
        )
        self.progress.accuracy = str(so_far)
        log.write("evaluate", {"class_il": accuracy.class_il, "task_il": accuracy.task_il})
        self.console.print(
            f"task {self.learner.learned}/{len(self.training_stream)} learned: {so_far}", highlight=False
        )

    def _save_model(self) -> None:
        state = dense_state(self.learner.model)
        temporary = self.directory.model.with_name(".model.tmp")
        save_file(state, temporary)
        temporary.replace(self.directory.model)

    def result(self) -> dict[str, Any]:
        """The contents of result.json (DESIGN: the contract of the run directory)."""
        learner, metrics = self.learner, self.matrix.metrics()
        return {
            "benchmark": self.experiment.stream,
            "method": self.experiment.method,
            "sparsifier": self.experiment.sparsifier,
            "backend": backend_used(learner),
            "seed": self.experiment.seed,
            "model_sha256": model_sha256(learner.model),
            **metrics,
            "accuracy_matrix": self.matrix.rows(),
            "sparsity": sparsity(learner),
            "samples": {"seen": self.ledger.samples_seen, "removed": self.ledger.samples_removed},
            "flops": self.ledger.totals(),
            "seconds": self.clock.seconds(),
            "memory": memory(learner.model, learner.optimizer, learner.sparsifier.layers, learner.method.buffer),
            "environment": environment(learner.device),
        }


def sparsity(learner: Learner) -> dict[str, float | int]:
    """Sparsity reached: share of prunable weights that is zero, and that is not updated; and the counts."""
    layers = learner.sparsifier.layers
    prunable = sum(torch.Size(layer.shape).numel() for layer in layers)
    active = sum(len(layer.index) for layer in layers)
    chosen = sum(len(layer.index) if layer.chosen is None else int(layer.chosen.sum()) for layer in layers)
    own = {id(layer.parameter) for layer in layers}
    dense = sum(p.numel() for p in learner.model.parameters() if id(p) not in own)
    return {
        "weights": 1 - active / prunable if prunable else 0.0,
        "gradients": 1 - chosen / prunable if prunable else 0.0,
        "prunable": prunable,
        "total": prunable + dense,
    }


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as dense, contiguous CPU tensors, by name, whichever backend trained it."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in dense_state_dict(model).items()}


def model_sha256(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the dense state dict, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dense_state(model).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def backend_used(learner: Learner) -> dict[str, Any]:
    """What really ran: the layers on each backend, and the instruction set of the native ones."""
    names = [layer.name for layer in learner.sparsifier.layers]
    isa = kernels.isa() if learner.backend == "native" else None
    return {"name": learner.backend, **backends(learner.model, names), "isa": isa}


def environment(device: torch.device) -> dict[str, Any]:
    """Where it ran."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sparcl": sparcl.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _reading(console: Console) -> Any:
    """A progress callback for the first decoding of the data."""
    shown = [0.0]

    def show(done: int, total: int) -> None:
        share = done / total if total else 1.0
        if share - shown[0] >= 0.25 or (done == total and shown[0]):
            shown[0] = share
            console.print(f"reading data: {share:.0%}", highlight=False)  # of files, or of an archive's bytes

    return show


@contextmanager
def _nothing_left_behind(directory: RunDirectory) -> Iterator[None]:
    """Remove a run directory that this run made if it is refused before there is anything worth keeping."""
    new = not directory.path.exists()
    try:
        yield
    except SparclError:
        if new and not (directory.path / "checkpoint").exists():
            shutil.rmtree(directory.path, ignore_errors=True)
        raise
