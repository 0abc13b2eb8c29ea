"""A stream without borders: samples come one by one or in small batches, and are gone after one step.

Legend: N samples of a call, C columns of the logits so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparcl import seeds
from sparcl.errors import ConfigError, DataError
from sparcl.learner.alone import first_norm
from sparcl.learner.asked import Asked
from sparcl.learner.average import ANSWERS_NOW
from sparcl.learner.interrupts import TORN, Held
from sparcl.learner.optimizer import check_trained
from sparcl.learner.position import StreamPosition
from sparcl.learner.training import Training
from sparcl.methods import METHODS
from sparcl.methods.method import Batch
from sparcl.streams.arrive import make_task
from sparcl.streams.augment import Transform, check_transform
from sparcl.streams.labels import Labels
from sparcl.streams.pixels import check_kind
from sparcl.streams.split import ArrayLike, as_inputs, as_labels, check_size
from sparcl.streams.task import Name, Samples, Task


class Observing(Training):
    """What `observe` adds to the loop over tasks."""

    _bound: StreamPosition | None = None
    """The stream that the sparsifier has been told of, in this process."""
    _asked: Present

    @property
    def observed(self) -> int:
        """Samples of the present stream so far; 0 where none is under way."""
        return 0 if self.stream is None else self.stream.samples

    def observe(self, x: ArrayLike, y: Labels | Name, *, transform: Transform | None = None) -> None:
        """One training step on what has just come; afterwards the state can be saved, and `predict` asked.

        Replay, masks and the choice of gradients go on by steps; no task begins or ends, no sample is removed. After
        `learn`, a stream begins; the next `learn` ends it. The model is in training mode meanwhile, and in evaluation
        mode before and after. Observers are told `step.begin` and `step.end` (`step` of the stream, `samples`,
        `loss`).

        Args:
            x: [N, ...] as stored, or one sample [...]: uint8, floating, or integers, which become float32.
            y: N labels, or one label for one sample: names where the head grows (`classes=()`), which gets a column
                for each new one; else columns, 0 <= label < C.
            transform: augmentation and normalisation, kept until another is given; default: that of the last call or
                task, at first one that scales uint8 to [0, 1].

        Raises:
            TrainingError: the loss became NaN or infinite.
            DataError: samples that cannot be trained on, or a label that is none.
            ConfigError: the method or the sparsifier needs borders, the model takes no such samples, one sample has no
                batch statistics, a class is new and the head is fixed, or a loaded state stands inside a task.
            CheckpointError: a checkpoint cannot be written.
        """
        self._check_observing()
        task, new = self._arrived(x, y, self._known(transform))
        self._check_single(len(task.train))
        with Held(), self._training():
            self._observe(task, new)

    # --- refusals, before anything changes ----------------------------------------------------------------------

    def _check_observing(self) -> None:
        """Raise ConfigError unless a step of a stream can be made now."""
        if self._torn:
            raise ConfigError(TORN)
        if self.position is not None or self._learning:
            raise ConfigError(
                f"observe was called inside task {self.learned + 1}: learn it to its end first"
                if self.stream is None
                else "observe was called inside a step of the stream"
            )
        if not _says(self.method, "borderless"):
            allowed = ", ".join(name for name, kind in METHODS.items() if vars(kind).get("borderless"))
            raise ConfigError(f"method {self.method.name} needs the borders of tasks; these do without: {allowed}")
        if self.method.single_head:
            raise ConfigError("single_head looks at a task's own classes, and a stream without borders has no tasks")
        if not self.rate.constant:
            raise ConfigError("a learning-rate schedule follows a task's budget, and a stream without borders has none")
        self.sparsifier.check_borderless()
        if self.average is not None and self.average.answers:
            raise ConfigError(ANSWERS_NOW)
        if self.stream is None or self._bound is not self.stream:  # once: it looks at every weight
            if self.latents is not None:
                self.latents.check_same()
            check_trained(self.optimizer)
            if (misfit := self._misfit()) is not None:
                raise ConfigError(misfit)

    def _known(self, transform: Transform | None) -> Transform:
        """The transform of this call."""
        if transform is None and self.transform is None and self.steps > 0:
            raise ConfigError("the loaded state has a transform of your own class: give it, observe(x, y, transform=)")
        found = transform or self.transform or Transform()
        check_transform(found, "observe")
        return found

    def _arrived(self, x: ArrayLike, y: Labels | Name, transform: Transform) -> tuple[Task, list[Name]]:
        """What came, as a task in the Learner's columns, all of which count as its classes; and the new names."""
        if not isinstance(y, str | int | np.generic) and getattr(y, "ndim", 1) > 0:
            return self._bound_to_columns(x, y, transform)
        one: Any = x if isinstance(x, Tensor) else np.asarray(x)
        label: Any = y.item() if isinstance(y, Tensor | np.ndarray | np.generic) else y
        try:
            return self._bound_to_columns(one[None], [label], transform)
        except (ConfigError, DataError) as error:
            told = f"y is one label, so x of shape {list(one.shape)} is one sample; for N samples give N labels"
            raise type(error)(f"{error} ({told})") from None

    def _bound_to_columns(self, x: ArrayLike, y: Labels, transform: Transform) -> tuple[Task, list[Name]]:
        if self.classes.grows:
            task, new = self.classes.bind(make_task(x, y, transform=transform), self.learned)
            self._columns(task)  # the model takes them
            columns = len(self.classes.names) + len(new)
        else:
            samples = Samples(as_inputs(x, "arriving"), as_labels(y, "arriving"))
            check_size(samples, "arriving")
            task, new = Task(self.learned, (), samples, None, transform), []
            columns = self._columns(task)
            _check_columns(samples.labels, columns)
        return Task(self.learned, tuple(range(columns)), task.train, None, transform), new

    def _columns(self, task: Task) -> int:
        """Of the logits that the model answers such samples with; asked once for each kind of them."""
        check_kind(task.train.inputs, self.stored_as, "the inputs")
        if self.method.buffer is not None and self.latents is None:
            self.method.buffer.check_inputs(task.train.inputs)
            self.method.buffer.check_storable(task.train.inputs)  # of each call: other numbers, other bounds
        kind = (task.train.inputs.dtype, task.train.inputs.shape[1:], task.transform)
        if getattr(self, "_fits", (None, 0))[0] != kind:
            asked = Task(task.index, (), task.train, None, task.transform)
            with self.generators.aside(seeds.derive(self.seed, "fit")):
                columns = self._columns_for(asked)
            self._fits = (kind, columns)
        return self._fits[1]

    def _check_single(self, samples: int) -> None:
        """Raise ConfigError if a batch of one would have to give batch statistics."""
        if samples > 1 or first_norm(self.model, self.frozen.modules()) is None:
            return
        held = 0 if self.method.buffer is None else len(self.method.buffer)
        if not self.method.joins_replay:
            why = f"and under method {self.method.name} it passes alone: give 2 or more (10 is usual), or use method er"
        elif held == 0:
            why = "and there is nothing to replay yet: give 2 or more in the first call"
        elif self.sparsifier.ranking == "fresh":
            why = "and ranking 'fresh' passes it alone: give 2 or more, or use ranking 'step'"
        else:
            return
        raise ConfigError(f"one sample has no batch statistics, which this model's BatchNorm needs, {why}")

    # --- the step -----------------------------------------------------------------------------------------------

    def _observe(self, task: Task, new: Sequence[Name]) -> None:
        """A step on samples that can be trained on, and whose new classes are these."""
        samples = len(task.train)
        with self._under_way():
            with self.classes.extended(new, self.optimizer, self.generators.head):
                trained = self._trained_on(task)
                self.task, self.trained_on, self.transform = task, trained, task.transform
                self.stored_as = task.train.inputs.dtype
                self.inputs, self.labels = trained.train.inputs.to(self.device), trained.train.labels.to(self.device)
                stream = self._bind(samples)
            self.frozen.train()
            self.sparsifier.begin_step(stream.steps)
            self.method.begin_step(0.0)
            loss = self._pass(self._assemble(torch.arange(samples)), stream, 0.0)
            stream.steps += 1
            stream.samples += samples
            self.steps += 1
        self.tell("step.end", {"step": stream.steps, "samples": samples, "loss": loss.detach()})

    def _bind(self, samples: int) -> StreamPosition:
        """Begin a stream, or go on in one that was loaded."""
        if self.stream is not None and self._bound is self.stream:
            self._asked.samples = samples
            return self.stream
        self._asked = Present(*self._lent(samples))
        if self.stream is None:
            self.method.make_room(self.trained_on, len(self.task.classes))
            self.sparsifier.begin_stream(self._asked.losses())
            self.stream = StreamPosition()
        else:
            self.sparsifier.resume_task(self._asked.losses())
        self._bound = self.stream
        return self.stream


class Present(Asked):
    """In a stream a fresh batch is the samples of the call, augmented anew: no others are at hand."""

    def _fresh_batch(self) -> Batch:
        return self.assemble(torch.arange(self.samples))


def _says(part: object, word: str) -> bool:
    """Whether the class itself, not one that it is made from, says so: a subclass may need what that one does not."""
    return bool(vars(type(part)).get(word, False))


def _check_columns(labels: Tensor, columns: int) -> None:
    """Raise DataError unless each label, int64 [N], has a column."""
    outside = labels[(labels < 0) | (labels >= columns)]
    if len(outside):
        raise DataError(
            f"label {int(outside[0])} is not allowed: the model has {columns} logits, 0 to {columns - 1}; a Learner"
            " with classes=() gives new classes their columns"
        )
