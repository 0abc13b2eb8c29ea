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
from sparcl.errors import CheckpointError, DataError
from sparcl.streams.lazy import Inputs


@dataclass(frozen=True)
class Remembered:
    """A batch from the buffer: inputs float32 [N, ...] augmented anew, labels int64 [N], logits [N, C] or None."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor | None


class ReservoirBuffer:
    """Keeps each sample seen so far with equal probability, as stored (before augmentation: uint8 stays uint8).

    Its memory grows with what it holds, doubling up to the capacity; a capacity may so stand for "all".
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("inputs", "labels", "logits")
    """What is stored of a sample: a tensor [n or more, ...] each, or None."""

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
        sources = self._draw(len(labels), generator)
        if not sources:
            return
        into = torch.tensor(list(sources.keys())).to(labels.device, non_blocking=True)
        origin = torch.tensor(list(sources.values())).to(labels.device, non_blocking=True)
        for name, offered in {"inputs": inputs, "labels": labels, "logits": logits}.items():
            if offered is not None:
                held = getattr(self, name)
                stored = self._with_room(offered[:0] if held is None else widened(held, offered))
                stored[into] = offered[origin]
                setattr(self, name, stored)

    def _with_room(self, held: Tensor) -> Tensor:
        """`held` with rows for the n samples and, up to the capacity, for more."""
        rows = min(self.capacity, 1 << (len(self) - 1).bit_length())
        if len(held) >= rows:
            return held
        roomy = held.new_zeros((rows, *held.shape[1:]))
        roomy[: len(held)] = held
        return roomy

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
        fields = {name for name in self.FIELDS if name in state or name != "logits"} if self.seen else set()
        for name in sorted(checks.keys(state, {"seen", *fields}, "the buffer").keys() - {"seen"}):
            if not isinstance(state[name], Tensor) or state[name].shape[:1] != (len(self),):
                raise CheckpointError(f"the buffer in the checkpoint does not hold {len(self)} samples")
            if name in ("labels", "groups"):
                whole = checks.tensor(state[name], f"the buffer's {name}", torch.int64, (None,))
                checks.within(whole, f"the buffer's {name}", 0, 1 << 40)
        if "logits" in fields:
            logits = state["logits"]
            if logits.dim() != 2 or not logits.is_floating_point():
                raise CheckpointError("the buffer's logits in the checkpoint are not floating point numbers [n, C]")

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise DataError unless a task's inputs [N, ...] are of the dtype and shape of those that are held."""
        if self.inputs is not None and (self.inputs.dtype, self.inputs.shape[1:]) != (inputs.dtype, inputs.shape[1:]):
            held, given = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape[1:])}" for t in (self.inputs, inputs))
            raise DataError(f"the task's samples are {given}, but those in the buffer are {held}: they must agree")

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.seen = checks.integer(state["seen"], "samples offered to the buffer")
        self._check(state)
        for name in self.FIELDS:
            stored = state.get(name)
            setattr(self, name, None if stored is None else self._with_room(stored.to(device, copy=True)))


def widened(held: Tensor, offered: Tensor) -> Tensor:
    """Logits held, with NaN in the columns of classes that came later; all else as it is."""
    if held.dim() != 2 or not held.is_floating_point() or held.shape[1] >= offered.shape[1]:
        return held
    return torch.nn.functional.pad(held, (0, offered.shape[1] - held.shape[1]), value=float("nan"))
