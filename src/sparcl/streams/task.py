"""Task, Stream: the data of continual learning, one task after another."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.streams.augment import How, Transform
from sparcl.streams.lazy import Inputs, Lazy, joined, select
from sparcl.whole import is_whole

Name = str | int
"""What a class is called."""


@dataclass(frozen=True)
class Samples:
    """One split of one task.

    Attributes:
        inputs: uint8 [N, C, H, W] for images, kept as decoded; float32 [N, ...] for arrays. A tensor, or what is read
            when it is indexed (`Lazy`).
        labels: int64 [N], the column of the logits (after the class order), 0 <= label < n_classes.
    """

    inputs: Inputs
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<{_count(self)} samples of {_kind(self)}>"


@dataclass(frozen=True)
class Task:
    """What arrives at once.

    Attributes:
        index: t, from 0.
        classes: the columns of the logits that belong to this task.
        train, test: the samples; a task without test samples (None) can be learned, not evaluated on.
        transform: from stored samples to what the network sees.
        names: where labels are not yet columns, but places in this tuple: the classes by name (`make_task`). The
            Learner gives them their columns, and the task its index.
        column_names: of all columns of its stream, where they are known: what `Learner.predict` answers with.
    """

    index: int
    classes: tuple[int, ...]
    train: Samples
    test: Samples | None = None
    transform: Transform = field(default_factory=Transform)
    names: tuple[Name, ...] = ()
    column_names: tuple[Name, ...] = ()

    def __repr__(self) -> str:
        size = f"{_count(self.train)} training and {_count(self.test)} test samples of {_kind(self.train)}"
        return f"<Task {self.index + 1}: classes {short(self.classes)}; {size}>"


@dataclass(frozen=True)
class Stream(Sequence[Task]):
    """A sequence of tasks with disjoint classes (`blurry`: some of them shared).

    Attributes:
        name: of the registry, or the user's own.
        tasks: in the order of their arrival.
        n_classes: over all tasks, the number of logits.
        input_shape: of one sample, (C, H, W) for images.
        class_names: in column order.
        fingerprint: SHA-256 (hex) over inputs and labels in task order; on resume it identifies the data. Of inputs
            that are read lazily it looks at 64 samples, evenly spaced, of each split of each task.
    """

    name: str
    tasks: tuple[Task, ...]
    n_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str

    def __repr__(self) -> str:
        size = f"{len(self)} task(s), {self.n_classes} classes, samples {list(self.input_shape)}"
        return f"<Stream {self.name}: {size}, fingerprint {self.fingerprint[:12]}>"

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        return self.tasks[index]

    @property
    def tested(self) -> bool:
        """Whether every task has test samples."""
        return all(task.test is not None for task in self.tasks)

    @property
    def lazy(self) -> bool:
        """Whether samples are read when they are needed, not held in memory."""
        return isinstance(self.tasks[0].train.inputs, Lazy)

    def limit_test(self, per_class: int) -> Stream:
        """The stream with only the first `per_class` test samples of each class: evaluation costs time, too.

        Raises:
            ConfigError: it is no number of 1 or more.
        """
        if not is_whole(per_class):
            raise ConfigError(f"test samples per class are {per_class!r:.40}: a whole number of 1 or more is needed")
        tasks = []
        for task in self.tasks:
            if task.test is None:
                tasks.append(task)
                continue
            labels = task.test.labels
            first = torch.cat([(labels == k).nonzero().squeeze(1)[:per_class] for k in task.classes]).sort().values
            tasks.append(replace(task, test=Samples(select(task.test.inputs, first), labels[first])))
        digest = hashlib.sha256(f"{self.fingerprint} {per_class} test samples a class".encode()).hexdigest()
        return replace(self, tasks=tuple(tasks), fingerprint=digest)

    def augmented(self, how: How) -> Stream:
        """The stream with the augmentation `how` in place of its own.

        Args:
            how: "none", "crop", "flip", "crop+flip" or your own function of a batch as stored and a generator, which
                gives a batch of the same shape and dtype; or a list of these.

        Raises:
            ConfigError: an unknown name, or an augmentation that does not fit the samples.
        """
        tasks = tuple(replace(task, transform=task.transform.augmented(how)) for task in self.tasks)
        for task in tasks[:1]:
            task.transform.train(task.train.inputs[:1], torch.Generator())
        return replace(self, tasks=tasks)

    def merged(self) -> Stream:
        """The stream with all its tasks in one: what joint training, the upper bound, is given."""
        train = [task.train for task in self.tasks]
        test = [task.test for task in self.tasks if task.test is not None]
        task = Task(
            index=0,
            classes=tuple(range(self.n_classes)),
            train=_joined(train),
            test=_joined(test) if test else None,
            transform=self.tasks[0].transform,
            column_names=self.tasks[0].column_names,
        )
        return replace(self, tasks=(task,))


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(joined([s.inputs for s in parts]), torch.cat([s.labels for s in parts]))


def short(classes: Collection[int]) -> str:
    """Class numbers in words: "0 to 9", or "1, 4"; of many that do not follow one another, the first few."""
    numbers = sorted(classes)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")


def _count(samples: Any) -> str:
    """Samples of a split, which nobody has checked yet."""
    labels = getattr(samples, "labels", ())
    return str(len(labels)) if hasattr(labels, "__len__") else "?"


def _kind(samples: Any) -> str:
    """Dtype and shape of one of its samples."""
    inputs: Any = getattr(samples, "inputs", None)
    if not hasattr(inputs, "dtype") or not hasattr(inputs, "shape"):
        return f"a {type(inputs).__name__}"
    return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape[1:])}"
