"""Streams for research in which tasks have no clear borders, and the samples of a stream as they come, once each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.streams.batches import last
from sparcl.streams.lazy import joined, select
from sparcl.streams.task import Samples, Stream, Task
from sparcl.whole import is_whole


def blurry(stream: Stream, blur: float = 0.1, *, disjoint: float = 0.5, seed: int = 0) -> Stream:
    """The stream with blurred borders: i-Blurry (Koh et al., ICLR 2022; there disjoint .5 and blur .1).

    A share of the classes, as many of each task as of every other, stays in its task alone. Of the other classes the
    share `blur` of the training samples leaves; what has left is shuffled and dealt out to all tasks alike. Each task
    keeps the test samples of the classes that were its own, so that no sample is tested twice; a class may now be in
    the `classes` of several tasks, and Task-IL is null.

    Args:
        stream: of tasks with disjoint classes.
        blur: share of the samples of each blurry class that leaves its task, 0 to less than 1.
        disjoint: share of the classes that is not blurred, 0 to 1, rounded to classes of the whole stream.
        seed: of the choice of classes and samples.

    Raises:
        ConfigError: a value outside its range, or the stream has fewer than two tasks or is blurred already.
    """
    _check_stream(stream)
    if not isinstance(stream, Stream):
        raise ConfigError(f"a {type(stream).__name__} of tasks cannot be blurred: give the stream itself, whole")
    if not isinstance(blur, Real) or not 0.0 <= blur < 1.0:
        raise ConfigError(f"blur {blur!r:.40} is not allowed; it is a share of a class's samples, 0 to less than 1")
    if not isinstance(disjoint, Real) or not 0.0 <= disjoint <= 1.0:
        raise ConfigError(f"disjoint {disjoint!r:.40} is not allowed; it is a share of the classes, 0 to 1")
    _check_seed(seed)
    if len(stream) < 2:
        raise ConfigError(f"a stream of {len(stream)} task has no border to blur")
    if sum(len(task.classes) for task in stream) > stream.n_classes:
        raise ConfigError("this stream's tasks share classes already: blur one whose classes are disjoint")
    generator = torch.Generator().manual_seed(seed)
    blurred = _blurred_classes(stream, disjoint, generator)
    stays, pool = [], []
    for t, task in enumerate(stream):
        here = torch.ones(len(task.train), dtype=torch.bool)
        for k in sorted(blurred & set(task.classes)):
            of_class = (task.train.labels == k).nonzero().squeeze(1)
            leaves = of_class[torch.randperm(len(of_class), generator=generator)[: int(blur * len(of_class))]]
            here[leaves] = False
            pool.append(torch.stack([torch.full_like(leaves, t), leaves], dim=1))
        stays.append(here.nonzero().squeeze(1))
    moved = torch.cat(pool) if pool else torch.empty(0, 2, dtype=torch.int64)
    moved = moved[torch.randperm(len(moved), generator=generator)]
    dealt = torch.tensor_split(moved, len(stream))
    tasks = tuple(_mixed(stream, t, stays[t], dealt[t]) for t in range(len(stream)))
    told = f"{stream.fingerprint} blurry {blur!r} {disjoint!r} {seed}"
    return replace(stream, tasks=tasks, fingerprint=hashlib.sha256(told.encode()).hexdigest())


def _blurred_classes(stream: Stream, disjoint: float, generator: torch.Generator) -> set[int]:
    """Classes that are not disjoint: of each task equally many, but for one."""
    orders = [torch.tensor(task.classes)[torch.randperm(len(task.classes), generator=generator)] for task in stream]
    turns = torch.randperm(len(stream), generator=generator).tolist()
    # a class of each task, then a second of each, ...
    by_turn = [int(orders[t][i]) for i in range(max(map(len, orders))) for t in turns if i < len(orders[t])]
    return set(by_turn[round(disjoint * len(by_turn)) :])


def _mixed(stream: Stream, t: int, stays: Tensor, dealt: Tensor) -> Task:
    """Task `t` of its own samples that stay and of those (task, sample) that it was dealt."""
    parts = [_of(stream[t].train, stays)]
    parts += [_of(stream[s].train, dealt[dealt[:, 0] == s, 1]) for s in range(len(stream))]
    train = Samples(joined([p.inputs for p in parts]), torch.cat([p.labels for p in parts]))
    return replace(stream[t], classes=tuple(sorted(set(train.labels.tolist()))), train=train)


def _of(samples: Samples, ids: Tensor) -> Samples:
    return Samples(select(samples.inputs, ids), samples.labels[ids])


def single_pass(
    stream: Sequence[Task], batch_size: int = 10, *, seed: int = 0, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training samples of a stream, each once: batches (x, y) for `Learner.observe`.

    Tasks come in their order, their samples shuffled; a batch may reach over a border. A last batch of one sample is
    left out: it has no batch statistics.

    Args:
        stream: its tasks.
        batch_size: samples of a batch, 1 or more.
        seed: of the order.
        skip: samples to leave out at the beginning: `Learner.observed` of a Learner that goes on.

    Returns:
        x [N, ...] as stored and y int64 [N], the columns.

    Raises:
        ConfigError: a value outside its range; or tasks of `make_task`, whose labels are no columns yet.
    """
    _check_stream(stream)
    if any(task.names for task in stream):
        raise ConfigError(
            "the labels of tasks that name their classes (make_task) are places in those names, the same in each task:"
            " give a stream, or observe x with the names themselves"
        )
    if not is_whole(batch_size):
        raise ConfigError(f"batch size {batch_size!r:.40} is not allowed; use 1 or more")
    if not is_whole(skip, 0):
        raise ConfigError(f"skip {skip!r:.40} is not allowed; use 0 or more samples")
    _check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(task.train), generator=generator) for task in stream]
    rows = torch.cat([torch.stack([torch.full_like(order, t), order], 1) for t, order in enumerate(orders)])[skip:]
    return _batches(stream, rows, batch_size)


def _batches(stream: Sequence[Task], rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the samples (task, number) in `rows`, in ascending order of tasks."""
    while count := last(len(rows), batch_size, drop_last=False):
        batch, rows = rows[:count], rows[count:]
        parts = [(stream[t].train, batch[batch[:, 0] == t, 1]) for t in sorted(set(batch[:, 0].tolist()))]
        yield torch.cat([of.inputs[ids] for of, ids in parts]), torch.cat([of.labels[ids] for of, ids in parts])


def _check_seed(seed: int) -> None:
    if not is_whole(seed, 0, 2**63 - 1):
        raise ConfigError(f"seed is {seed!r:.40}: allowed are 0 to 2^63 - 1")


def _check_stream(stream: Sequence[Task]) -> None:
    if not isinstance(stream, Sequence) or not stream or not all(isinstance(task, Task) for task in stream):
        kind = type(stream).__name__
        raise ConfigError(f"a {kind} is no stream: load one, make one of arrays, or give a list of tasks")
