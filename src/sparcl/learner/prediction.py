"""What a Learner answers to inputs as they come from the camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparcl.errors import ConfigError, DataError, one_line
from sparcl.learner.accuracy import AT_ONCE
from sparcl.streams.augment import Transform, is_ours
from sparcl.streams.pixels import as_learned
from sparcl.streams.task import Name, Samples, Task


@dataclass(frozen=True)
class Prediction:
    """Answers to N inputs.

    Attributes:
        names: of the columns, [C]; their numbers where they have no names.
        probabilities: float32 [N, C], softmax of the logits; a class outside the asked task has 0.
        columns: int64 [N], the most probable.
    """

    names: tuple[Name, ...]
    probabilities: Tensor
    columns: Tensor

    @property
    def labels(self) -> list[Name]:
        """The most probable class of each input, by name."""
        return [self.names[k] for k in self.columns.tolist()]

    def __len__(self) -> int:
        return len(self.columns)

    def check(self, called: Callable[[int], str]) -> None:
        """Raise DataError if an answer is no number, the largest of which would be some class all the same.

        Args:
            called: what the sample of that number is called.
        """
        odd = self.probabilities.isnan().any(dim=1).nonzero()
        if len(odd):
            raise DataError(f"the network's answer to {called(int(odd[0]))} is no number")


@torch.no_grad()
def predict(
    answer: Callable[[Tensor, Task], Tensor],
    inputs: Any,
    transform: Transform,
    names: list[Name],
    columns: tuple[int, ...] | None,
    index: int,
    device: torch.device,
    at_once: int = AT_ONCE,
    learned: torch.dtype | None = None,
) -> Prediction:
    """Answers of a network, which is evaluating, to inputs as stored: the transform of the tests goes first.

    Args:
        answer: `Method.predict` of a Learner, or `Method.answer` without one.
        columns: of the task that is asked about; None: all.
        index: of that task, or of the last one.
        at_once: inputs that are asked at a time.
        learned: how the samples were stored that the network learned, where that is known.

    Raises:
        DataError: the inputs are no [N, ...] of uint8 or numbers, or not those that the network takes or has learned.
    """
    given = as_learned(inputs, learned, "new")
    if given.dtype != (learned or given.dtype) and not is_ours(transform):
        raise DataError("the transform is of your own class, which may know uint8 alone: give the inputs as uint8")
    empty = Samples(given[:0], torch.empty(0, dtype=torch.int64))
    task = Task(index, columns or (), empty, empty, transform)
    answers = []
    for start in range(0, len(given), at_once):
        batch = given[start : start + at_once].to(device)
        try:
            answers.append(answer(transform.test(batch), task).cpu())
        except (RuntimeError, ValueError, TypeError, IndexError, ConfigError) as error:
            kind = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
            alone = "" if given.dim() > 3 else " (inputs are [N, ...]: one sample x is x[None])"
            raise DataError(f"the model does not take these inputs, {kind}{alone}: {one_line(error)}") from error
    logits = torch.cat(answers)
    if columns is not None:
        outside = torch.ones(logits.shape[1], dtype=torch.bool)
        outside[list(columns)] = False
        logits = logits.masked_fill(outside, float("-inf"))
    named = tuple(names) if len(names) == logits.shape[1] else tuple(range(logits.shape[1]))
    return Prediction(named, logits.softmax(dim=1), logits.argmax(dim=1))
