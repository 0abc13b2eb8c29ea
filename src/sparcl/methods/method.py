"""What a continual-learning method is: a loss for each step, and what it remembers.

Legend: N batch, C classes of the whole stream (columns of the logits).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.methods.buffer import Remembered, ReservoirBuffer, parse_bytes
from sparcl.recorded import Recorded
from sparcl.streams.task import Task

DEFAULT_SIZE = 200
"""Samples in a buffer that is given neither a size nor bytes."""

SCENARIOS = ("class-il", "task-il")


@dataclass(frozen=True)
class Batch:
    """A batch of the present task.

    Attributes:
        ids: int64 [N], sample numbers within the task.
        raw: [N, ...], inputs as stored, before augmentation.
        inputs: float32 [N, ...], augmented and normalised.
        labels: int64 [N].
        task: the task they belong to.
    """

    ids: Tensor
    raw: Tensor
    inputs: Tensor
    labels: Tensor
    task: Task


@dataclass(frozen=True)
class Host:
    """What a Learner lends its method.

    Attributes:
        model: the network; inputs in, logits [N, C] out.
        augment: from inputs as stored to what the network is trained on, augmented anew at each call.
        generator: CPU generator for the method's own draws (buffer).
        device: where the training tensors live.
        replay_batch_size: samples drawn from the buffer at a time.
        mask_gradients: clears the parameters' gradients where the sparsifier lets nothing move.
        scale_gradients: by what the sparsifier makes of the parameters' gradients before they move a weight.
        read_replay: calls what it is given, the backward pass of L(M) where a method makes one of its own after the
            step's (`after_backward`), so that its gradient can be ranked by.
    """

    model: nn.Module
    augment: Callable[[Tensor], Tensor]
    generator: torch.Generator
    device: torch.device
    replay_batch_size: int
    mask_gradients: Callable[[], None] = lambda: None
    scale_gradients: Callable[[], None] = lambda: None
    read_replay: Callable[[Callable[[], None]], None] = lambda backward: backward()


class Method(Recorded, ABC):
    """A method: `loss` is its whole idea; `after_step` is what it remembers.

    Args:
        single_head: mask the logits of classes outside the present task in the training loss of the task's batch.
            Off as published for ER, DER and DER++; the published SparCL code turns it on (docs/method.md).
    """

    name: ClassVar[str]
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    learns_all_at_once: ClassVar[bool] = False
    """Whether the method is given all tasks as one (joint)."""
    masks: ClassVar[str] = "moving"
    """Sparsity that the method works under: `moving` masks, `fixed` ones only, or `none` (it prunes itself)."""
    grows: ClassVar[bool] = False
    """Whether the method follows a head that grows with new classes."""
    borderless: ClassVar[bool] = False
    """Whether it works in a stream without tasks (`Learner.observe`), where none begins or ends: of each class its own
    word."""
    joins_replay: ClassVar[bool] = False
    """Whether remembered samples share the new ones' forward pass, so that one new sample has batch statistics."""
    answers_unseen: ClassVar[bool] = True
    """Whether it has an answer for classes that no task has brought yet; without one there is no forward transfer."""
    by_parameter: ClassVar[bool] = False
    """Whether something is remembered of each parameter: none may then be added or exchanged."""
    passes_in_parts: ClassVar[bool] = True
    """Whether the model's passes may be made in micro-batches: each is of the model's own weights."""
    uses_classifier: ClassVar[bool] = False
    """Whether the method looks for the layer that makes the logits: the last one that the model defines."""

    answers_need: ClassVar[str | None] = None
    """What an answer needs beside the network's weights, in words; None where these alone give it."""

    def __init__(self, *, single_head: bool = False) -> None:
        self.single_head = single_head
        self.buffer: ReservoirBuffer | None = None

    @classmethod
    def check(cls, sparsifier: str, *, prunes: bool, moves: bool) -> None:
        """Raise ConfigError if the method cannot work under a sparsifier of that name that `prunes` and `moves`."""
        if prunes and cls.masks == "none":
            raise ConfigError(f"method {cls.name} prunes the network itself: use sparsifier dense, not {sparsifier}")
        if moves and cls.masks == "fixed":
            raise ConfigError(
                f"method {cls.name} compares weights across tasks and cannot follow the moving masks of"
                f" {sparsifier}: use sparsifier dense, static or snip"
            )

    def check_stream(self, tasks: int, classes: int) -> None:
        """Raise ConfigError if a stream of so many tasks, and of so many classes in all, cannot be remembered."""

    def attach(self, host: Host) -> None:
        """Bind to a Learner, once, before the first task.

        Raises:
            ConfigError: the method is bound already: what it remembers is the other Learner's.
        """
        self.check_unbound()
        self.host = host

    def check_unbound(self) -> None:
        """Raise ConfigError if it is bound: what it remembers is the other Learner's."""
        if hasattr(self, "host"):
            raise ConfigError(f"this {self.name} belongs to another Learner: make a new one for each")

    def check_task(self, task: Task) -> None:
        """Raise ConfigError if a task that is about to begin cannot be learned, before any work."""

    def make_room(self, task: Task, columns: int) -> None:
        """A task is about to begin, in a network of so many logits: see to it that the memory can hold its samples.

        Raises:
            ConfigError, DataError: it cannot.
        """

    def begin_task(self, task: Task) -> None:
        """A task begins; its samples are at hand."""

    def resume_task(self, task: Task) -> None:
        """Training goes on inside `task` after `load_state_dict`: bind to its samples, change nothing."""

    def begin_step(self, progress: float) -> None:
        """A step begins; `progress` is the share, 0 to less than 1, of the task's planned steps that is done."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The objective of one step, a scalar, and the logits [N, C] of the task's batch.

        The model is called as a whole, and the task's batch comes first: what is not among the first N samples of the
        first call is remembered (`apart.py` ranks by the two).
        """

    def after_backward(self, batch: Batch) -> None:
        """Gradients are there, the optimizer has not yet moved; the sparsifier clears what must not move after this."""

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """The optimizer has moved: remember."""

    def end_task(self, task: Task) -> None:
        """A task is over; its samples are still at hand."""

    def predict(self, inputs: Tensor, task: Task) -> Tensor:
        """Logits [N, C] for normalised inputs; only a Task-IL method may look at `task`."""
        del task
        logits: Tensor = self.host.model(inputs)
        return logits

    def answer_state(self, task: Task) -> dict[str, Tensor]:
        """What `answer` needs beside the weights as they are now, by name; nothing where these alone give it.

        Args:
            task: any of the stream: its transform normalises what is remembered.
        """
        del task
        return {}

    @classmethod
    def answer(cls, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor], task: int | None = None) -> Tensor:
        """As `predict`, but without a Learner: from a plain network with its final weights, evaluating.

        Args:
            model: dense, as it was before any training, its state dict loaded.
            inputs: [N, ...], normalised.
            state: of `answer_state`.
            task: index from 0, for a Task-IL method; its classes are then the columns to look at.

        Returns:
            Logits [N, C].
        """
        del state, task
        logits: Tensor = model(inputs)
        return logits

    @classmethod
    def as_network(cls, model: nn.Module, state: Mapping[str, Tensor], task: int | None = None) -> nn.Module:
        """A network of its own whose forward pass is `answer`: for programs that know nothing of methods.

        Args:
            model: as `answer` takes it; it stays as it is, but may be a part of what is returned.
            state, task: see `answer`.
        """
        del state, task
        return model

    def task_importance_loss(self, batch: Batch) -> Tensor:
        """L~(D_t), the single-head cross-entropy that importance is asked of."""
        return self.single_head_loss(self.host.model(batch.inputs), batch)

    def single_head_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """L~(D_t) of logits [N, C] that the batch was answered with."""
        return F.cross_entropy(only(logits, batch.task.classes), batch.labels)

    def replay_importance_loss(self) -> Tensor | None:
        """L(M), the method's loss on its buffer; None while there is nothing to rehearse."""
        return None

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the task's batch, over all classes or, `single_head`, over the task's own."""
        if self.single_head:
            logits = only(logits, batch.task.classes)
        return F.cross_entropy(logits, batch.labels)

    def replay(self) -> Remembered | None:
        """A batch from the buffer, augmented anew; None while the buffer is empty."""
        if self.buffer is None:
            return None
        return self.buffer.sample(self.host.replay_batch_size, self.host.generator, self.host.augment)

    def state_dict(self) -> dict[str, Any]:
        """All that the method must remember to go on, as nested dicts of tensors and JSON values."""
        return {} if self.buffer is None else {"buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"], self.host.device)


class RehearsalMethod(Method):
    """A method with a reservoir buffer.

    Args:
        buffer_size: samples kept, over all tasks; default 200.
        single_head: see Method.
        buffer_bytes: bytes of all that is kept, labels and logits included, in place of `buffer_size`: a number, or
            such as "2MB".
        buffer_policy: `reservoir`, every sample seen with equal probability, or `balanced`, for unequal classes.
        buffer_storage: `raw`, as samples come; `float16`, for floating inputs; `jpeg`, for uint8 images, lossy.
    """

    fills_by_task: ClassVar[bool] = False
    """Whether the buffer is filled at a task's end, by shares that are the method's own."""
    stores_logits: ClassVar[bool] = False
    replays_alone: ClassVar[bool] = False
    """Whether remembered samples have a forward pass of their own: batch statistics then need two of them."""

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        single_head: bool = False,
        buffer_bytes: int | str | None = None,
        buffer_policy: str = "reservoir",
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(single_head=single_head)
        if buffer_bytes is not None and buffer_size is not None:
            raise ConfigError(f"{self.name} is given a buffer size and buffer bytes: give one of them")
        if buffer_bytes is not None and buffer_storage == "jpeg" and self.fills_by_task:
            raise ConfigError(
                f"method {self.name} fills its buffer once a task, before the sizes of later JPEGs are known: give it"
                " a buffer size, or another storage"
            )
        size = None if buffer_bytes is not None else DEFAULT_SIZE if buffer_size is None else buffer_size
        self._check_size(size)
        self.kept_as: dict[str, Any] = {
            "capacity": size,
            "max_bytes": None if buffer_bytes is None else parse_bytes(buffer_bytes),
            "policy": buffer_policy,
            "storage": buffer_storage,
            "least": 2 if self.replays_alone else 1,
        }
        self.buffer: ReservoirBuffer = ReservoirBuffer(**self.kept_as)

    def _check_size(self, buffer_size: int | None) -> None:
        if buffer_size is None:
            return
        if buffer_size < 1:
            raise ConfigError(
                f"buffer size {buffer_size} is not allowed for {self.name}: a replay method needs 1 or more"
            )
        if self.replays_alone and buffer_size < 2:
            raise ConfigError(
                f"buffer size {buffer_size} is not allowed for {self.name}: it replays alone, use 2 or more"
            )

    def make_room(self, task: Task, columns: int) -> None:
        self.buffer.make_room(task.train.inputs, columns if self.stores_logits else 0, self.host.generator)

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        self.buffer.add(batch.raw, batch.labels, logits.detach() if self.stores_logits else None, self.host.generator)


def check_not_negative(method: str, **values: float) -> None:
    """Raise ConfigError unless each of these values of the method is finite and 0 or more."""
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"{name} {value} is not allowed for {method}; use 0 or more")


def only(logits: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Logits [N, C] with every class outside `classes` at -inf."""
    outside = torch.ones(logits.shape[1], dtype=torch.bool)
    outside[list(classes)] = False
    return logits.masked_fill(outside.to(logits.device, non_blocking=True), float("-inf"))
