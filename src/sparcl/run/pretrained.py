"""Weights that a run starts from: a safetensors file, which executes nothing, and what of it fits a network."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sparcl import regular
from sparcl.errors import ConfigError, SparclError, one_line, out_of_memory
from sparcl.methods.respond import classifier
from sparcl.run.experiment import Experiment

MAX_WEIGHTS = 8 << 30
"""Bytes of a file of weights."""


def read(path: Path, *, ours: bool = False, error: type[SparclError] = ConfigError) -> tuple[dict[str, Tensor], str]:
    """A safetensors file's tensors by name, all finite, and the SHA-256 of the file.

    Args:
        path: where it is.
        ours: a run left it there; then it is no link.
        error: what to raise.

    Raises:
        SparclError: missing, unreadable, damaged, of another format, or with NaN or infinity in it.
    """
    try:
        content = regular.read(path, MAX_WEIGHTS, ours=ours)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    if content[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise error(
            f"{path} is a pickle, which may run any program: allowed is safetensors (safetensors.torch.save_file)"
        )
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, KeyError) as problem:
        if out_of_memory(problem):
            raise
        raise error(f"{path} is no safetensors file, or damaged ({one_line(problem)})") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise error(f"{path} has NaN or infinite values in {name!r:.80}")
    return tensors, hashlib.sha256(content).hexdigest()


def recorded(experiment: Experiment) -> Experiment:
    """The experiment with the SHA-256 of the file that it starts from.

    Raises:
        ConfigError: the file cannot be used, or is another than the one that is recorded.
    """
    if experiment.init is None:
        return experiment
    _, sha256 = _weights(experiment)
    return dataclasses.replace(experiment, init_sha256=sha256)


def start(model: nn.Module, experiment: Experiment) -> str | None:
    """Load the weights that the experiment starts from, if it names any; returns what the user should hear.

    Raises:
        ConfigError: the file cannot be used, is another than the one recorded, or does not fit the model.
    """
    if experiment.init is None:
        return None
    return load(model, _weights(experiment)[0], experiment.init)


def _weights(experiment: Experiment) -> tuple[dict[str, Tensor], str]:
    assert experiment.init is not None
    tensors, sha256 = read(Path(experiment.init))
    if experiment.init_sha256 not in (None, sha256):
        raise ConfigError(
            f"{experiment.init} is another file than the run began from: its SHA-256 is {sha256[:12]}, not"
            f" {str(experiment.init_sha256)[:12]}"
        )
    return tensors, sha256


def load(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Load a state dict; a classifier of another number of classes stays as it is, all else must fit.

    Args:
        model: as it was built.
        tensors: by name, floating ones of any precision.
        name: of the file, for messages.

    Returns:
        What the user should hear; None where everything was loaded.

    Raises:
        ConfigError: tensors are missing, unknown, or of another shape or kind; nothing is loaded.
    """
    own, given = model.state_dict(), dict(tensors)
    head = next(key for key, module in model.named_modules() if module is classifier(model))
    of_head = [key for key in own if key.rpartition(".")[0] == head]
    fresh = [k for k in of_head if k not in given or _other_rows(own[k], given[k])]
    if fresh:  # rows and their bias belong together
        for key in of_head:
            given.pop(key, None)
    needed = [key for key in own if not (fresh and key in of_head)]
    if missing := [key for key in needed if key not in given]:
        raise ConfigError(f"{name} lacks {_listed(missing)}, which the model has")
    if unknown := [key for key in given if key not in own]:
        raise ConfigError(f"{name} holds {_listed(unknown)}, which the model has not (it has {_listed(list(own))})")
    for key in needed:
        mine, theirs = own[key], given[key]
        if mine.shape != theirs.shape or mine.is_floating_point() != theirs.is_floating_point():
            raise ConfigError(
                f"{name} has {key} as {_described(theirs)}, but the model as {_described(mine)}: another width or model"
            )
    model.load_state_dict({**own, **{k: given[k].to(own[k].dtype) for k in needed}})
    if not fresh:
        return None
    return f"{name} has no classifier of {len(own[fresh[0]])} classes: {_listed(of_head)} start fresh, the rest from it"


def _other_rows(mine: Tensor, theirs: Tensor) -> bool:
    return mine.dim() == theirs.dim() and mine.shape[1:] == theirs.shape[1:] and len(mine) != len(theirs)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _listed(names: Iterable[str]) -> str:
    first, *more = [f"{name:.80}" for name in names]
    return ", ".join([first, *more[:2]]) + (f" and {len(more) - 2} more" if len(more) > 2 else "")
