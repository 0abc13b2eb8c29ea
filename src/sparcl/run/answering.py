"""A finished run, opened for use: its network as plain PyTorch, and what its answers need beside the weights."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparcl import methods, named, seeds
from sparcl import nn as networks
from sparcl.errors import CheckpointError, ConfigError, SparclError
from sparcl.learner.prediction import Prediction, predict
from sparcl.methods.method import Method
from sparcl.run import pretrained
from sparcl.run.experiment import Experiment
from sparcl.run.record import RunDirectory
from sparcl.run.toml import read_toml
from sparcl.streams.augment import Normalize, Transform
from sparcl.streams.task import Name, Task

MOST_CLASSES = 1 << 20


@dataclass(frozen=True)
class Answering:
    """What a finished run answers with.

    Attributes:
        path: the run directory, or a device's file.
        method: what it was learned with.
        model, width: of the network, by name; None where it is a device's own list of layers.
        network: dense, evaluating, with its final weights.
        state: of `Method.answer_state`.
        names: of the columns of the logits.
        tasks: the columns of each task.
        input_shape: of one sample.
        pixels: whether samples are uint8.
        normalize: what goes before the network.
    """

    path: Path
    method: type[Method]
    model: str | None
    width: int | None
    network: nn.Module
    state: dict[str, Tensor]
    names: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    input_shape: tuple[int, ...]
    pixels: bool
    normalize: Normalize

    @classmethod
    def of(cls, path: Path) -> Self:
        """Open a run directory.

        Raises:
            CheckpointError: there is no run, it is not finished, or its files are damaged or do not fit each other.
        """
        directory = _finished(path)
        experiment = Experiment.from_dict(read_toml(directory.config), str(directory.config)).resolve()
        known = described(directory.read_result().get("data"), directory.result)
        kind = methods.find(experiment.method)
        tensors = _left(directory.model)
        state: dict[str, Tensor] = {}
        if kind.answers_need is not None:
            state = _left(directory.answers)
            if not state:
                raise CheckpointError(f"{directory.answers} is empty: it must hold {kind.answers_need}")
        network = _network(experiment, len(known["names"]), known["input_shape"], tensors, directory.model)
        return cls(path, kind, experiment.model, experiment.width, network, state, **known)

    def columns(self, task: int | None) -> tuple[int, ...] | None:
        """Those of a task, numbered from 1; None for all.

        Raises:
            ConfigError: there is no such task, or the method needs one to be named.
        """
        if task is None and "class-il" not in self.method.scenarios:
            raise ConfigError(f"method {self.method.name} answers for one task: add --task 1 to {len(self.tasks)}")
        if task is not None and not 1 <= task <= len(self.tasks):
            raise ConfigError(f"task {task} is not known; allowed are 1 to {len(self.tasks)}")
        return None if task is None else self.tasks[task - 1]

    def predict(self, inputs: Tensor, task: int | None = None) -> Prediction:
        """Answers to inputs as stored, [N, ...]; the transform of the tests goes first.

        Args:
            task: from 1; see `columns`.

        Raises:
            DataError: the inputs are not those that the network takes.
            CheckpointError: what the run has kept for its answers does not fit its network.
        """
        columns = self.columns(task)

        def answer(x: Tensor, asked: Task) -> Tensor:
            return self.method.answer(self.network, x, self.state, asked.index)

        index = len(self.tasks) - 1 if task is None else task - 1
        transform = Transform(self.normalize)
        names: list[Name] = list(self.names)
        cpu = torch.device("cpu")
        return predict(answer, inputs, transform, names, columns, index, cpu, learned=self.learned)

    @property
    def learned(self) -> torch.dtype:
        """Of the samples that were learned, as stored."""
        return torch.uint8 if self.pixels else torch.float32

    def check_answers(self) -> None:
        """Refuse a run whose files do not fit each other, by one answer to an empty picture for each task.

        Raises:
            CheckpointError: they do not.
        """
        blank = torch.zeros(1, *self.input_shape, dtype=self.learned)
        asked = range(1, len(self.tasks) + 1) if "class-il" not in self.method.scenarios else [None]
        try:
            answers = [self.predict(blank, task) for task in asked]
        except (SparclError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the files in {self.path} do not fit each other: {error!s:.120}") from error
        if any(a.probabilities.shape != (1, len(self.names)) or bool(a.probabilities.isnan().any()) for a in answers):
            raise CheckpointError(f"the files in {self.path} do not fit each other: they give no answer")


def _left(file: Path) -> dict[str, Tensor]:
    """The tensors in a file that the run has left."""
    try:
        return pretrained.read(file, ours=True, error=CheckpointError)[0]
    except CheckpointError as error:
        raise CheckpointError(f"{error}; while its checkpoint is there, --resume writes it again") from None


def _finished(path: Path) -> RunDirectory:
    """The directory of a finished run."""
    try:
        if not path.is_dir():
            raise CheckpointError(f"{path} is no run directory: name one that `sparcl run` has left")
        directory = RunDirectory(path)
        if not directory.finished:
            begun = directory.config.exists()
            hint = "is not finished: go on with sparcl run --resume" if begun else "holds no run: it has no config.toml"
            raise CheckpointError(f"{path} {hint}")
    except OSError as error:
        raise CheckpointError(f"run directory {path} cannot be read: {error.strerror}") from None
    return directory


def _network(
    experiment: Experiment, classes: int, shape: tuple[int, ...], tensors: dict[str, Tensor], file: Path
) -> nn.Module:
    """The run's network with the weights of its file, which must be all of its and no others."""
    assert experiment.model is not None
    with seeds.given_back(), nullcontext() if named.is_own(experiment.model) else torch.device("meta"):
        network = networks.build(experiment.model, classes, shape, experiment.width)  # ours: no memory yet
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors:
            raise CheckpointError(f"{file} does not fit config.toml: {name!r:.80} is in one of the two only")
        if own[name].shape != tensors[name].shape or own[name].dtype != tensors[name].dtype:
            raise CheckpointError(f"{file} does not fit config.toml: {name!r:.80} has another shape or type")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def described(known: Any, file: Path) -> dict[str, Any]:
    """What result.json says of the data, checked, as `Answering` keeps it.

    Raises:
        CheckpointError: it says nothing, or what cannot be.
    """
    if known is None:
        raise CheckpointError(f"{file} does not say what the classes are (an older sparcl wrote it): run it again")
    try:
        names, tasks, shape = known["class_names"], known["tasks"], known["input_shape"]
        whole = all(isinstance(value, list) for value in (names, tasks, shape, *tasks))
        numbers = [k for columns in tasks for k in columns]
        right = whole and all(type(name) in (str, int) for name in names) and 0 < len(names) <= MOST_CLASSES
        right = right and all(type(k) is int and 0 <= k < len(names) for k in numbers) and len(numbers) > 0
        right = right and all(type(k) is int and k > 0 for k in shape) and 0 < len(shape) <= 8
        right = right and math.prod(shape) < 1 << 31 and isinstance(known["input_dtype"], str)
        mean, std = ([float(v) for v in known[key]] for key in ("mean", "std"))
        if not right or not all(map(math.isfinite, [*mean, *std])):
            raise ValueError("a value of another kind")
        normalize = Normalize(mean, std)
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise CheckpointError(f"the section data of {file} is damaged ({error!s:.80})") from None
    return {
        "names": tuple(map(str, names)),
        "tasks": tuple(map(tuple, tasks)),
        "input_shape": tuple(shape),
        "pixels": known["input_dtype"] == "uint8",
        "normalize": normalize,
    }
