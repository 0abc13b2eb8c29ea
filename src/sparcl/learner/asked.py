"""What the sparsifier asks the method for: its losses on fresh batches, counted apart from training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparcl.methods.method import Batch, Method
from sparcl.sparsity.importance import Losses
from sparcl.sparsity.sparsifier import Sparsifier


class Asked:
    """The losses of one task.

    Args:
        method, sparsifier: who is asked, and who asks.
        assemble: makes the batch of sample numbers, int64 [N].
        generator: of the draw of fresh batches.
        samples: of the task.
        batch_size: N.
        tell: passes an event on.
        in_parts: passes in there are made in micro-batches, where these are asked for. (The `objective` passes whole:
            who asks for it looks at what went through each layer.)
    """

    def __init__(
        self,
        method: Method,
        sparsifier: Sparsifier,
        assemble: Callable[[Tensor], Batch],
        generator: torch.Generator,
        samples: int,
        batch_size: int,
        tell: Callable[[str, dict[str, Any]], None],
        in_parts: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.method, self.sparsifier, self.assemble = method, sparsifier, assemble
        self.generator, self.samples, self.batch_size, self.tell = generator, samples, batch_size, tell
        self.in_parts = in_parts

    def losses(self) -> Losses:
        """As a sparsifier takes them."""
        return Losses(self.task, self.replay, self.objective, from_steps=True)

    def task(self) -> Tensor:
        """L~(D_t) on a fresh batch of the samples still in the task."""
        with self._told(), self.in_parts():
            return self.method.task_importance_loss(self._fresh_batch())

    def replay(self) -> Tensor | None:
        """L(M) on a fresh batch of the buffer; None also where that holds one sample: it has no batch statistics."""
        if self.method.buffer is not None and len(self.method.buffer) < 2:
            return None
        with self._told(), self.in_parts():
            return self.method.replay_importance_loss()

    def objective(self) -> Tensor:
        """What the method trains on, on a fresh batch of the task (and of the buffer)."""
        with self._told():
            return self.method.loss(self._fresh_batch())[0]

    def _fresh_batch(self) -> Batch:
        drawn = torch.randperm(self.samples, generator=self.generator)
        return self.assemble(self.sparsifier.keep(drawn)[: self.batch_size])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The forward passes in here are asked for by the sparsifier, not by the method: counted apart."""
        self.tell("importance.begin", {})
        try:
            yield
        finally:
            self.tell("importance.end", {})
