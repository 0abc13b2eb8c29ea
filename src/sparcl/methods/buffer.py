"""The rehearsal buffer: a sample of everything seen, by reservoir sampling (Vitter, 1985) or balanced over the classes.

Legend: B capacity, n filled, N batch, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError, DataError
from sparcl.methods.policy import make_policy
from sparcl.methods.storage import Blobs, Held, make_storage, put, with_rows
from sparcl.streams.lazy import Inputs, Lazy

UNLIMITED = 1 << 62
"""The capacity of a buffer of so many bytes, until it is known what a sample takes."""

LABEL_BYTES, LOGIT_BYTES = 8, 4

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Remembered:
    """A batch from the buffer: inputs float32 [N, ...] augmented anew, labels int64 [N], logits [N, C] or None."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor | None


class ReservoirBuffer:
    """Keeps samples as they came (before augmentation) or in another form, each seen so far with equal probability or
    by another policy.

    Its memory grows with what it holds, doubling up to the capacity; a capacity may so stand for "all".

    Args:
        capacity: samples; None where `max_bytes` is given.
        max_bytes: of all that is held. The capacity is then what fits, known when the first task begins; it falls where
            logits get more columns and, for JPEGs, which differ in size, where the last ones are larger: then samples
            leave at random.
        policy, storage: names of `POLICIES` and `STORAGES`.
        least: samples that must fit.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("inputs", "labels", "logits")
    """What is stored of a sample: a row for each place, or None."""

    def __init__(
        self,
        capacity: int | None,
        *,
        max_bytes: int | None = None,
        policy: str = "reservoir",
        storage: str = "raw",
        least: int = 1,
    ) -> None:
        self.capacity = UNLIMITED if capacity is None else capacity
        self.max_bytes, self.least = max_bytes, least
        self.policy, self.storage = make_policy(policy), make_storage(storage)
        self.seen = 0
        self.inputs: Held | None = None
        self.labels: Tensor | None = None
        self.logits: Tensor | None = None

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def __repr__(self) -> str:
        room = f"of {self.capacity}" if self.capacity < UNLIMITED else "so far"
        most = "" if self.max_bytes is None else f" of at most {self.max_bytes:,}"
        kept = f"{self.policy.name}, {self.storage.name}"
        return f"<{type(self).__name__}: {len(self)} samples {room}, {kept}, {self.nbytes():,} bytes{most}>"

    def add(self, inputs: Tensor, labels: Tensor, logits: Tensor | None, generator: torch.Generator) -> None:
        """Offer a batch: inputs [N, ...], labels [N], logits [N, C] or None."""
        sources = self.policy.draw(labels, self._held_labels, self.seen, self.capacity, generator)
        self.seen += len(labels)
        if not sources:
            return
        into = torch.tensor(list(sources.keys())).to(labels.device, non_blocking=True)
        origin = torch.tensor(list(sources.values())).to(labels.device, non_blocking=True)
        self._put("inputs", self.storage.stored(inputs[origin]), into)
        self._put("labels", labels[origin], into)
        if logits is not None:
            self._put("logits", logits[origin], into)
        self._fit(generator)

    def _put(self, name: str, offered: Held, into: Tensor) -> None:
        """Write rows of a field at places that may be new."""
        held = getattr(self, name)
        stored = self._with_room(offered[:0] if held is None else widened(held, offered))
        put(stored, into, offered)
        setattr(self, name, stored)

    def _with_room(self, held: Held) -> Held:
        """`held` with rows for the n samples and, up to the capacity, for more."""
        exact = self.max_bytes is not None and self.capacity == UNLIMITED
        return with_rows(held, len(self) if exact else min(self.capacity, 1 << (len(self) - 1).bit_length()))

    def _held_labels(self) -> list[int]:
        return [] if self.labels is None else self.labels[: len(self)].tolist()

    # --- so many bytes ------------------------------------------------------------------------------------------

    def make_room(self, inputs: Inputs, columns: int, generator: torch.Generator) -> None:
        """A task with inputs [N, ...] as these begins; `columns` logits are kept of each sample (0: none).

        Raises:
            DataError: they cannot be stored so.
            ConfigError: the bytes hold too few samples.
        """
        some = self.check_storable(inputs)
        if self.max_bytes is None:
            return
        one = self.storage.sample_bytes(some)
        beside = LABEL_BYTES * (len(self.FIELDS) - 2) + LOGIT_BYTES * columns
        stored = self.storage.stored(some[: self.least]).nbytes if one is None else one * self.least
        if stored + beside * self.least > self.max_bytes:
            raise ConfigError(
                f"buffer bytes {self.max_bytes:,} are too few: {self.least} sample(s) of {stored // self.least:,} bytes"
                f" with label and logits, {beside}, take {stored + beside * self.least:,}"
            )
        if one is not None:
            self._shrink(min(self.capacity, self.max_bytes // (one + beside)), generator)

    def check_storable(self, inputs: Inputs) -> Tensor:
        """Raise DataError unless inputs [N, ...] can be stored; returns them, or some of what is read lazily."""
        some = inputs.witness() if isinstance(inputs, Lazy) else inputs
        self.storage.check(some)
        return some

    def _fit(self, generator: torch.Generator) -> None:
        """As many leave as no longer fit: all at once, or one by one where samples differ in size."""
        if self.max_bytes is None:
            return
        if isinstance(self.inputs, Tensor):
            row = sum(held[:1].nbytes for held in map(self.__dict__.get, self.FIELDS) if held is not None)
            if (fit := max(1, self.max_bytes // row)) < self.capacity:  # logits of more classes; also before it is full
                self._shrink(fit, generator)
        while self.nbytes() > self.max_bytes and len(self) > 1:
            self._shrink(len(self) - 1, generator)

    def _shrink(self, capacity: int, generator: torch.Generator) -> None:
        """Hold no more than so many samples from now on."""
        labels = self._held_labels()
        gone = set(self.policy.leaves(labels, len(labels) - capacity, generator)) if len(labels) > capacity else set()
        if self.labels is not None and (gone or len(self.labels) > capacity):  # rows that are empty still go as well
            self._keep(torch.tensor([place for place in range(len(labels)) if place not in gone]))
        self.capacity = capacity

    def _keep(self, places: Tensor) -> None:
        """Hold the samples at these places, int64 [n], and no others."""
        for name in self.FIELDS:
            if (held := getattr(self, name)) is not None:
                setattr(self, name, held[places])

    # --- what is remembered -------------------------------------------------------------------------------------

    def sample(self, count: int, generator: torch.Generator, augment: Callable[[Tensor], Tensor]) -> Remembered | None:
        """`count` different samples at random (all, where there are fewer); None while the buffer is empty."""
        if self.inputs is None or self.labels is None:
            return None
        picked = torch.randperm(len(self), generator=generator)[:count].to(self.labels.device, non_blocking=True)
        inputs = self.storage.inputs(self.inputs[picked], self.labels.device)
        return Remembered(augment(inputs), self.labels[picked], None if self.logits is None else self.logits[picked])

    def recall(self) -> Tensor:
        """All inputs that are held, [n, ...], as they came; n is 1 or more."""
        assert self.inputs is not None
        assert self.labels is not None
        return self.storage.inputs(self.inputs[: len(self)], self.labels.device)

    def nbytes(self) -> int:
        """Bytes that the buffer holds."""
        return sum(held.nbytes for held in map(self.__dict__.get, self.FIELDS) if held is not None)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        limit = {} if self.max_bytes is None else {"capacity": self.capacity}
        state: dict[str, Any] = {"seen": self.seen, **limit, **self.policy.state()}
        for name in self.FIELDS:
            if (held := getattr(self, name)) is not None:
                own = self.storage.state if name == "inputs" else lambda rows, name=name: {name: rows}
                state |= own(held[: len(self)])
        return state

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse what `state_dict` could not have given."""
        wanted = (*self.storage.fields, *self.FIELDS[1:])
        fields = {name for name in wanted if name in state or name != "logits"} if self.seen else set()
        beside = {"seen", *self.policy.keys, *(() if self.max_bytes is None else ("capacity",))}
        checks.keys(state, {*beside, *fields}, "the buffer")
        for name in sorted(fields - set(self.storage.fields)):
            if not isinstance(state[name], Tensor) or state[name].shape[:1] != (len(self),):
                raise CheckpointError(f"the buffer in the checkpoint does not hold {len(self)} samples")
            if name in ("labels", "groups"):
                whole = checks.tensor(state[name], f"the buffer's {name}", torch.int64, (None,))
                checks.within(whole, f"the buffer's {name}", 0, 1 << 40)
        if "logits" in fields:
            logits = state["logits"]
            if logits.dim() != 2 or not logits.is_floating_point():
                raise CheckpointError("the buffer's logits in the checkpoint are not floating point numbers [n, C]")

    def kind(self) -> tuple[torch.dtype, torch.Size] | None:
        """Dtype and shape of one input, as it came; None while there is none."""
        return None if self.inputs is None else self.storage.kind(self.inputs[:1])

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise DataError unless a task's inputs [N, ...] are of the dtype and shape of those that are held."""
        kind, own = self.kind(), (inputs.dtype, inputs.shape[1:])
        if kind not in (None, own):
            held, given = (f"{str(d).removeprefix('torch.')} {list(s)}" for d, s in (kind or own, own))
            raise DataError(f"the task's samples are {given}, but those in the buffer are {held}: they must agree")

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.seen = checks.integer(state["seen"], "samples offered to the buffer")
        if self.max_bytes is not None:
            self.capacity = checks.integer(state["capacity"], "the buffer's capacity", 1)
        self._check(state)
        self.policy.load(state)
        for name in self.FIELDS:
            setattr(self, name, self._loaded(name, state, device))
        if self.max_bytes is not None and len(self) > 1:
            self._check_bytes(self.max_bytes)

    def _check_bytes(self, most: int) -> None:
        """Refuse a capacity that would lead beyond so many bytes."""
        rows = [held[:1].nbytes for held in map(self.__dict__.get, self.FIELDS) if isinstance(held, Tensor)]
        samples = self.capacity if isinstance(self.inputs, Tensor) else 0
        if max(self.nbytes(), samples * sum(rows)) > most:
            raise CheckpointError(f"the buffer in the checkpoint holds, or would hold, more than its {most:,} bytes")

    def _loaded(self, name: str, state: Mapping[str, Any], device: torch.device | str) -> Held | None:
        if state.get(name) is None:
            return None
        held = self.storage.loaded(state, len(self)) if name == "inputs" else state[name]
        return self._with_room(held.to(device, copy=True) if isinstance(held, Tensor) else held)


def widened(held: Held, offered: Held) -> Held:
    """Logits held, with NaN in the columns of classes that came later; all else as it is."""
    if isinstance(held, Blobs) or isinstance(offered, Blobs) or held.dim() != 2 or not held.is_floating_point():
        return held
    if held.shape[1] >= offered.shape[1]:
        return held
    return torch.nn.functional.pad(held, (0, offered.shape[1] - held.shape[1]), value=float("nan"))


def parse_bytes(value: int | str, what: str = "buffer bytes") -> int:
    """Bytes of a number, or of a text as "2MB" (10^6) and "2MiB" (2^20); `what` they are of, for messages.

    Raises:
        ConfigError: it is neither, or less than 1.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]?I?B)?\s*", str(value).upper(), re.ASCII)
    if isinstance(value, bool) or found is None:
        raise ConfigError(f"{what} of {value!r:.40} is not allowed; use a number of bytes or such as 500kB, 2MB, 1GiB")
    whole = int(float(found[1]) * UNITS[found[2] or "B"])
    if not 1 <= whole < UNLIMITED:
        raise ConfigError(f"{what} of {value!r:.40} is not allowed; use 1 or more")
    return whole
