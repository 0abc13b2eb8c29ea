"""The rehearsal buffer: a uniform sample of everything seen, by reservoir sampling (Vitter, 1985).

Legend: B capacity, n filled, N batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError


@dataclass(frozen=True)
class Remembered:
    """A batch from the buffer: inputs float32 [N, ...] augmented anew, labels int64 [N], logits [N, C] or None."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor | None


class ReservoirBuffer:
    """Keeps each sample seen so far with equal probability, as stored (before augmentation: uint8 stays uint8)."""

    FIELDS: ClassVar[tuple[str, ...]] = ("inputs", "labels", "logits")
    """What is stored of a sample: a tensor [B, ...] each, or None."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.seen = 0
        self.inputs: Tensor | None = None
        self.labels: Tensor | None = None
        self.logits: Tensor | None = None

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, inputs: Tensor, labels: Tensor, logits: Tensor | None, generator: torch.Generator) -> None:
        """Offer a batch: inputs [N, ...], labels [N], logits [N, C] or None."""
        if self.inputs is None or self.labels is None:
            self.inputs = inputs.new_zeros((self.capacity, *inputs.shape[1:]))
            self.labels = labels.new_zeros(self.capacity)
            self.logits = None if logits is None else logits.new_zeros((self.capacity, logits.shape[1]))
        sources = self._draw(len(labels), generator)
        if not sources:
            return
        into = torch.tensor(list(sources.keys())).to(labels.device, non_blocking=True)
        origin = torch.tensor(list(sources.values())).to(labels.device, non_blocking=True)
        self.inputs[into] = inputs[origin]
        self.labels[into] = labels[origin]
        if self.logits is not None and logits is not None:
            self.logits[into] = logits[origin]

    def _draw(self, count: int, generator: torch.Generator) -> dict[int, int]:
        """Slot -> sample of the batch; of two samples that draw one slot the later stays, as if one by one."""
        draws = torch.rand(count, dtype=torch.float64, generator=generator).tolist()
        slots: dict[int, int] = {}
        for sample, draw in enumerate(draws):
            slot = self.seen if self.seen < self.capacity else int(draw * (self.seen + 1))
            if slot < self.capacity:
                slots[slot] = sample
            self.seen += 1
        return slots

    def sample(self, count: int, generator: torch.Generator, augment: Callable[[Tensor], Tensor]) -> Remembered | None:
        """`count` different samples at random (all, where there are fewer); None while the buffer is empty."""
        if self.inputs is None or self.labels is None:
            return None
        picked = torch.randperm(len(self), generator=generator)[:count].to(self.labels.device, non_blocking=True)
        return Remembered(
            augment(self.inputs[picked]), self.labels[picked], None if self.logits is None else self.logits[picked]
        )

    def nbytes(self) -> int:
        """Bytes that the buffer holds."""
        return sum(t.nbytes for t in map(self.__dict__.get, self.FIELDS) if t is not None)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"seen": self.seen}
        for name in self.FIELDS:
            tensor = getattr(self, name)
            if tensor is not None:
                state[name] = tensor[: len(self)]
        return state

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse what `state_dict` could not have given."""
        held = [state[name] for name in self.FIELDS if name in state]
        if len(held) != len(state) - 1 or any(not isinstance(t, Tensor) or len(t) != len(self) for t in held):
            raise CheckpointError(f"the buffer in the checkpoint does not hold {len(self)} samples")
        if held:
            checks.within(
                checks.tensor(state["labels"], "the buffer's labels", torch.int64, (None,)), "labels", 0, 1 << 40
            )
        elif self.seen:
            raise CheckpointError("the buffer in the checkpoint has seen samples but holds none")

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.seen = checks.integer(state["seen"], "samples offered to the buffer")
        self._check(state)
        for name in self.FIELDS:
            stored = state.get(name)
            if stored is None:
                setattr(self, name, None)
                continue
            full = torch.zeros((self.capacity, *stored.shape[1:]), dtype=stored.dtype, device=device)
            full[: len(stored)] = stored
            setattr(self, name, full)
