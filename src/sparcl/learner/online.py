"""How good a Learner is at any time of a stream: accuracy against the samples seen (Koh et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sparcl.errors import ConfigError
from sparcl.learner.learner import Learner
from sparcl.streams.blurry import single_pass
from sparcl.streams.task import Name, Samples, Stream, Task
from sparcl.whole import is_whole


@dataclass(frozen=True)
class Anytime:
    """Accuracy in Class-IL on the test samples of the classes seen by then, percent.

    Attributes:
        samples: of the stream, seen at each measurement, rising.
        accuracy: measured then.
    """

    samples: tuple[int, ...]
    accuracy: tuple[float, ...]

    @property
    def average(self) -> float:
        """Average anytime accuracy, A_AUC: the area under accuracy against samples, each measurement standing for the
        samples since the one before, as a share of the whole."""
        since = [now - before for before, now in zip((0, *self.samples), self.samples, strict=False)]
        return sum(a * n for a, n in zip(self.accuracy, since, strict=True)) / self.samples[-1]

    @property
    def lowest(self) -> float:
        """The worst of them: what one may have been answered with."""
        return min(self.accuracy)

    @property
    def final(self) -> float:
        """After the last sample."""
        return self.accuracy[-1]

    def __str__(self) -> str:
        return f"anytime {self.average:.2f} % (lowest {self.lowest:.2f} %), final {self.final:.2f} %"


def online(learner: Learner, stream: Stream, *, every: int = 100, batch_size: int = 10, seed: int = 0) -> Anytime:
    """Observe a stream in a single pass, and measure after every so many samples and at the end.

    Args:
        learner: that no stream is under way in; with a column for each class of the stream, or a head that grows (its
            names are then the stream's, as its tasks name them).
        stream: each of its tasks has test samples.
        every: samples between two measurements, rounded up to batches.
        batch_size: samples of a call of `observe`.
        seed: of the order of the samples.

    Raises:
        ConfigError: a value outside its range, a stream is under way, or a task has no test samples.
        See `Learner.observe`.
    """
    if not isinstance(learner, Learner) or not isinstance(stream, Stream):
        raise ConfigError("online takes a Learner and a Stream, as online(learner, stream)")
    if not is_whole(every):
        raise ConfigError(f"every is {every!r:.40}: measure after 1 sample or more")
    if learner.observed:
        raise ConfigError(
            "the Learner stands inside a stream: go on by hand, with single_pass(stream, skip=learner.observed)"
        )
    if not stream.tested:
        raise ConfigError(f"stream {stream.name} has tasks without test samples: nothing to measure on")
    names: Sequence[Name] = _names(stream) if learner.classes.grows else range(stream.n_classes)
    measured: list[tuple[int, float]] = []
    seen: set[int] = set()
    for x, y in single_pass(stream, batch_size, seed=seed):
        learner.observe(x, [names[k] for k in y.tolist()], transform=stream[0].transform)
        seen |= set(y.tolist())
        if learner.observed - (measured[-1][0] if measured else 0) >= every:
            measured.append((learner.observed, accuracy_on(learner, stream, seen)))
    if not measured or measured[-1][0] != learner.observed:
        measured.append((learner.observed, accuracy_on(learner, stream, seen)))
    samples, accuracy = zip(*measured, strict=True)
    return Anytime(samples, accuracy)


def accuracy_on(learner: Learner, stream: Stream, seen: set[int]) -> float:
    """Class-IL accuracy, percent, on the test samples of the classes `seen`, columns of the stream."""
    classes = sorted(seen)
    found = []
    for tests in [task.test for task in stream if task.test is not None]:
        among = torch.isin(tests.labels, torch.tensor(classes))
        found.append((tests.inputs[among], tests.labels[among]))
    if not sum(len(labels) for _, labels in found):
        raise ConfigError(f"stream {stream.name} has no test samples of the classes seen so far: nothing to measure on")
    inputs, labels = zip(*found, strict=True)
    test = Samples(torch.cat(inputs), torch.cat(labels))
    asked = Task(0, tuple(classes), test, test, stream[0].transform)
    if learner.classes.grows:
        places = torch.searchsorted(torch.tensor(classes), test.labels)
        test = Samples(test.inputs, places)
        asked = replace(asked, train=test, test=test, names=tuple(_names(stream)[k] for k in classes))
    class_il = learner.evaluate([asked]).class_il
    assert class_il is not None  # methods that need the task are refused by `observe`
    return class_il[0]


def _names(stream: Stream) -> Sequence[Name]:
    """Of its columns, as `learn` takes them."""
    return stream[0].column_names or stream.class_names
