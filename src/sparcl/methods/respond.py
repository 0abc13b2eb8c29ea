"""What a network answers to samples as they are stored: for methods that remember its answers.

Legend: N samples, C classes of the whole stream, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError
from sparcl.nn.layers import is_weighted
from sparcl.streams.lazy import Inputs
from sparcl.streams.task import Task

RESPONSE_BATCH = 64


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Inputs, task: Task, device: torch.device) -> Tensor:
    """Logits [N, C] of samples as stored, not augmented, the model evaluating; `task` normalises them."""
    with evaluating(model):
        return torch.cat([model(batch) for batch in _batches(inputs, task, device)])


@torch.no_grad()
def features_of(model: nn.Module, inputs: Inputs, task: Task, device: torch.device) -> Tensor:
    """L2-normalised features [N, D], the classifier's input, of samples as stored, the model evaluating."""
    features = []
    with evaluating(model), classifier_inputs(model) as seen:
        for batch in _batches(inputs, task, device):
            model(batch)
            features.append(nn.functional.normalize(seen.pop().flatten(1), dim=1))
    return torch.cat(features)


def loaded_answers(value: Any, device: torch.device) -> Tensor | None:
    """Recorded logits [N, C] from a checkpoint, or None where there were none."""
    if value is None:
        return None
    return checks.tensor(value, "the recorded answers", torch.float32, (None, None)).to(device)


def check_answers(recorded: Tensor | None, task: Task) -> None:
    """Raise CheckpointError unless recorded answers, if there are any, are one for each sample of the task."""
    if recorded is not None and len(recorded) != len(task.train):
        raise CheckpointError(
            f"the checkpoint holds recorded answers to {len(recorded)} samples, but task {task.index + 1} has"
            f" {len(task.train)}"
        )


@contextmanager
def classifier_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which each forward pass in here adds what its last convolution or linear layer was given."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        seen.append(inputs[0].detach())

    hook = classifier(model).register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def classifier(model: nn.Module) -> nn.Module:
    """The last convolution or linear layer that the model defines, taken for the one that makes the logits.

    Raises:
        ConfigError: it has none.
    """
    weighted = [module for module in model.modules() if is_weighted(module)]
    if not weighted:
        raise ConfigError("the model has no convolution and no linear layer, and the last one is its classifier here")
    return weighted[-1]


@torch.no_grad()
def answers_by_classifier(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the logits for normalised `inputs` may be the work of `classifier(model)`, the model evaluating.

    Not so where that layer takes no part, as an unused one, or has other columns, as an auxiliary one.
    """
    columns: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del module, inputs
        columns.append(output.shape[1])

    hook = classifier(model).register_forward_hook(note)
    try:
        with evaluating(model):
            logits: Tensor = model(inputs)
    finally:
        hook.remove()
    return columns[-1:] == [logits.shape[1]]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, every module's mode given back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(inputs: Inputs, task: Task, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(inputs), RESPONSE_BATCH):
        yield task.transform.test(inputs[start : start + RESPONSE_BATCH].to(device))
