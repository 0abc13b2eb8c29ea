"""A short trial in this process: how much memory it takes at its peak to train, by what it is for.

The learner is made as the run makes it and learns two tasks of few samples; it is asked, and its state and its dense
weights are taken as at a run's end. What was resident before counts: the imports, and the data where they are held.
"""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sparcl import seeds
from sparcl.cost.memory import memory, resident_bytes, set_back_peak
from sparcl.errors import ConfigError, DataWarning, out_of_memory
from sparcl.kernels.allocator import return_all_freed_memory
from sparcl.learner import Learner
from sparcl.learner.accuracy import AT_ONCE
from sparcl.nn.convert import dense_state_dict
from sparcl.streams.lazy import Inputs, Lazy, select
from sparcl.streams.task import Samples, Stream, Task

STEPS = 8
"""Of a task of the trial: a mask moves and remembered samples are replayed in it."""

TASKS = 2
"""A method may keep something from the end of the first on: a teacher, importances."""

TESTED = 2 * AT_ONCE
"""Test samples of a task of the trial."""

Make = Callable[[int, float | None, int | None], Learner]
"""A new learner of `STEPS` steps a task, from a batch size, a sparsity (None: as its sparsifier has it) and a
micro-batch (None: passes are whole)."""


@dataclass(frozen=True)
class Trial:
    """Bytes of a trial. The peaks are of the process.

    Attributes:
        before: resident when it began.
        training: the peak of its steps.
        beside: the peak of all else: making the learner, asking it, taking its state.
        weights: weights, positions, gradients and optimizer in compact form.
        buffer: what the buffer held then, `sample` of it for each sample (0: no buffer).
    """

    before: int
    training: int
    beside: int
    weights: int
    buffer: int
    sample: int


def run(make: Callable[[], Learner], tasks: Sequence[Task], batch: int) -> Trial | None:
    """Make it; None where memory ran out (under a limit of the system's).

    Raises:
        ConfigError: the system does not say what is resident.
    """
    before = _resident()
    try:
        with seeds.given_back(), _quietly():
            return _trial(make, tasks, batch, before)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        gc.collect()
        return_all_freed_memory()


def _trial(make: Callable[[], Learner], tasks: Sequence[Task], batch: int, before: int) -> Trial:
    gc.collect()
    _set_back()
    learner = make()
    beside = _resident("VmHWM")
    training = buffer = 0
    for task in tasks:
        _set_back()
        learner.learn(short(task, batch))
        training = max(training, _resident("VmHWM"))
    _set_back()
    learner.evaluate([short(task, batch) for task in tasks if task.test is not None] or [short(tasks[0], batch, True)])
    learner.checkpoint_state()
    dense_state_dict(learner.model)
    beside = max(beside, _resident("VmHWM"))
    held = memory(learner.model, learner.optimizer, learner.sparsifier.layers, learner.method.buffer)
    weights = sum(held[f"{part}_bytes"] or 0 for part in ("parameter", "index", "gradient", "optimizer"))
    if learner.method.buffer is not None:
        buffer = learner.method.buffer.nbytes()
    count = 0 if learner.method.buffer is None else len(learner.method.buffer)
    return Trial(before, training, beside, weights, buffer, -(-buffer // count) if count else 0)


def short(task: Task, batch: int, test_on_training: bool = False) -> Task:
    """The task with as few samples as a trial needs, from all over it."""
    train = _some(task.train, max(STEPS * batch, 4 * len(task.classes), 64))
    test = train if test_on_training else None if task.test is None else _some(task.test, TESTED)
    return dataclasses.replace(task, train=train, test=test)


def _some(samples: Samples, most: int) -> Samples:
    if len(samples) <= most:
        return samples
    ids = torch.linspace(0, len(samples) - 1, most).long()
    return Samples(select(samples.inputs, ids), samples.labels[ids])


def data_bytes(stream: Stream) -> int:
    """Of a stream's samples that are held in memory."""
    splits = [split for task in stream.tasks for split in (task.train, task.test) if split is not None]
    return sum(_held(split.inputs) + split.labels.nbytes for split in splits)


def _held(inputs: Inputs) -> int:
    return 0 if isinstance(inputs, Lazy) else inputs.nbytes


def _resident(field: str = "VmRSS") -> int:
    if (held := resident_bytes(field)) is None:
        raise ConfigError("max memory cannot be held here: the system does not say what is resident (Linux does)")
    return held


def _set_back() -> None:
    if not set_back_peak():
        raise ConfigError("max memory cannot be held here: /proc/self/clear_refs cannot be written")


@contextmanager
def _quietly() -> Iterator[None]:
    """What the data or the model should be heard of is heard when the run makes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield
