"""Which forward passes a method makes, found by asking it: a few of its steps on a tiny network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.methods.method import Batch, Host, Method
from sparcl.streams.augment import Transform
from sparcl.streams.batches import steps
from sparcl.streams.task import Samples, Task

Passes = list[tuple[int, bool]]
"""Forward passes: samples, and whether a backward pass follows."""


@dataclass
class TaskPasses:
    """A task's passes; the last of `steps` and of `replays` stand for all that follow."""

    begin: Passes = field(default_factory=list)
    steps: list[Passes] = field(default_factory=list)
    replays: list[Passes] = field(default_factory=list)
    """Of L(M), where it is asked for just before the step of that number."""
    end: Passes = field(default_factory=list)
    short: Passes = field(default_factory=list)
    """Of one more step after those, on an epoch's last batch, where that has fewer samples."""


def probe(
    method: Method, samples: Sequence[int], *, epochs: int, batch_size: int, replay_batch_size: int, drop_last: bool
) -> list[TaskPasses]:
    """The passes of `method` on tasks of `samples` training samples each; uses the method up.

    Only as many steps are made as it takes to fill the buffer for a replay batch: after that they are all alike.
    """
    model = _Recorder(2 * len(samples))
    method.attach(
        Host(
            model=model,
            augment=lambda raw: raw,
            generator=seeds.generator(0, "method"),
            device=torch.device("cpu"),
            replay_batch_size=replay_batch_size,
        )
    )
    return [
        _task(
            *(method, model, index, count, steps(count, batch_size, drop_last), epochs),
            filling=math.ceil(replay_batch_size / min(batch_size, count)),
        )
        for index, count in enumerate(samples)
    ]


def _task(
    method: Method,
    model: _Recorder,
    index: int,
    samples: int,
    epoch: tuple[int, int, int],
    epochs: int,
    *,
    filling: int,
) -> TaskPasses:
    per_epoch, batch, last = epoch
    classes = (2 * index, 2 * index + 1)
    inputs, labels = torch.zeros(samples, 1), torch.tensor(classes).repeat(samples)[:samples]
    data = Samples(inputs, labels)
    task = Task(index=index, classes=classes, train=data, test=data, transform=Transform())
    passes = TaskPasses()
    with model.recording(passes.begin):
        method.begin_task(task)
    for _ in range(min(filling + 2, epochs * per_epoch)):
        passes.replays.append([])
        with model.recording(passes.replays[-1]):
            method.replay_importance_loss()
        passes.steps.append([])
        with model.recording(passes.steps[-1]):
            _step(method, Batch(torch.arange(batch), inputs[:batch], inputs[:batch], labels[:batch], task))
    if last < batch:
        again = copy.deepcopy(method)  # what the method itself remembers stays as it is
        with cast(_Recorder, again.host.model).recording(passes.short):
            _step(again, Batch(torch.arange(last), inputs[:last], inputs[:last], labels[:last], task))
    with model.recording(passes.end):
        method.end_task(task)
    return passes


def _step(method: Method, batch: Batch) -> None:
    loss, logits = method.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    method.after_backward(batch)
    method.after_step(batch, logits)


class _Recorder(nn.Module):
    """[N, 1] in, logits [N, classes] out; notes how many samples came and whether a gradient was asked for.

    The layer between is for methods that prune the network themselves.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, classes))
        self._into: Passes = []

    @contextmanager
    def recording(self, into: Passes) -> Iterator[None]:
        self._into = into
        yield
        self._into = []

    def forward(self, x: Tensor) -> Tensor:
        self._into.append((len(x), torch.is_grad_enabled()))
        logits: Tensor = self.layers(x)
        return logits
