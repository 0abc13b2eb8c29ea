"""The streams by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparcl import named
from sparcl.errors import ConfigError, DataError, unknown
from sparcl.streams.augment import How, Transform
from sparcl.streams.checked import checked
from sparcl.streams.cifar import seq_cifar10, seq_cifar100
from sparcl.streams.digits import seq_digits
from sparcl.streams.files import Progress
from sparcl.streams.folder import folder
from sparcl.streams.idx import seq_fashion_mnist, seq_mnist
from sparcl.streams.labels import ClassesPerTask
from sparcl.streams.task import Name, Stream
from sparcl.streams.tinyimagenet import seq_tinyimg


@dataclass(frozen=True)
class Entry:
    """One named stream.

    Attributes:
        open: the function that loads it.
        needs_data: whether it reads files (and takes `data` and `progress`).
        resizes: whether it takes `resize` and `lazy`.
    """

    open: Callable[..., Stream]
    needs_data: bool = True
    resizes: bool = False


STREAMS: dict[str, Entry] = {
    "seq-digits": Entry(seq_digits, needs_data=False),
    "seq-mnist": Entry(seq_mnist),
    "seq-fashion-mnist": Entry(seq_fashion_mnist),
    "seq-cifar10": Entry(seq_cifar10),
    "seq-cifar100": Entry(seq_cifar100),
    "seq-tinyimg": Entry(seq_tinyimg),
    "folder": Entry(folder, resizes=True),
}


def reads_data(name: str) -> bool:
    """Whether a stream, by its name or as `package.module:name`, reads files (and takes `data`)."""
    return named.takes(named.find("stream", name), "data") if named.is_own(name) else STREAMS[name].needs_data


def load(
    name: str,
    data: Path | None = None,
    *,
    classes_per_task: ClassesPerTask | None = None,
    class_order_seed: int | None = None,
    class_order: Sequence[Name] | None = None,
    limit_per_class: int | None = None,
    resize: int | tuple[int, int] | None = None,
    augment: How | None = None,
    lazy: bool | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Load a stream by its name.

    Args:
        name: a key of `STREAMS`, or your own callable as `package.module:name`, which gives a `Stream`. It is called
            with those of `data` and of the options below, `augment` excepted, that are given.
        data: a folder or an archive; None is the folder `data`. seq-digits reads none.
        classes_per_task: a number that divides the number of classes, or one for each task: [4, 3, 3]. None is the
            published split of the stream.
        class_order_seed: shuffles the classes over the tasks; None keeps the natural order.
        class_order: the names of all classes, in the order in which they come.
        limit_per_class: keep only the first so many training and so many test samples of a class.
        resize: only for `folder`: the side of a square, or (height, width).
        augment: in place of the stream's own, see `Stream.augmented`.
        lazy: only for `folder`: whether images are decoded whenever they are needed; None: if they would not fit.
        progress: called with (done, total) while files are read for the first time.

    Raises:
        ConfigError: an unknown name, data for a stream that reads none, or an option that the stream does not have.
        DataError: data that is missing, damaged or does not fit.
    """
    options: dict[str, Any] = {
        "classes_per_task": classes_per_task,
        "class_order_seed": class_order_seed,
        "class_order": class_order,
        "limit_per_class": limit_per_class,
        "resize": resize,
        "lazy": lazy,
    }
    options = {k: v for k, v in options.items() if v is not None}
    loaded = (_own if named.is_own(name) else _ours)(name, data, options, progress)
    return loaded if augment is None else loaded.augmented(augment)


def _ours(name: str, data: Path | None, options: Mapping[str, Any], progress: Progress | None) -> Stream:
    if name not in STREAMS:
        raise ConfigError(unknown("stream", name, [*STREAMS, "package.module:name"]))
    entry = STREAMS[name]
    if "resize" in options and not entry.resizes:
        able = ", ".join(k for k, e in STREAMS.items() if e.resizes)
        raise ConfigError(f"{name} images have one size already: only {able} can be resized")
    if "lazy" in options and not entry.resizes:
        able = ", ".join(k for k, e in STREAMS.items() if e.resizes)
        raise ConfigError(f"{name} is held in memory whole: only {able} can be read lazily")
    if not entry.needs_data:
        if data is not None:
            raise ConfigError(f"{name} reads no data: leave {str(data)!r} out")
        return entry.open(**options)
    place = data if data is not None else Path("data")
    try:
        return entry.open(place, progress=progress, **options)
    except OSError as error:  # such as a folder that may not be listed
        raise DataError(f"{error.filename or place} cannot be read: {error.strerror}") from error


def _own(name: str, data: Path | None, options: Mapping[str, Any], progress: Progress | None) -> Stream:
    """A stream of the user's, of which a run takes for granted what our own are checked for."""
    given = dict(options) if data is None else {**options, "data": data}
    asks = "progress" in named.arguments_of(named.find("stream", name))  # **settings asks for what is given alone
    made = named.make("stream", name, given=given, usual={"progress": progress} if asks else {})
    if not isinstance(made, Stream):
        raise ConfigError(f"stream {name} gives a {type(made).__name__}; a sparcl.streams.Stream is needed")
    columns = sorted(k for task in made.tasks for k in task.classes)
    if [task.index for task in made.tasks] != list(range(max(len(made), 1))):
        raise ConfigError(f"stream {name}: its tasks must be numbered 0, 1, ..., and there must be one or more")
    if columns != list(range(made.n_classes)) or len(made.class_names) != made.n_classes:
        raise ConfigError(
            f"stream {name}: each of its {made.n_classes} classes needs a name, and one task that it is in"
        )
    tasks = tuple(checked(task) for task in made.tasks)
    if len({task.test is None for task in tasks}) > 1:
        raise ConfigError(f"stream {name}: either all of its tasks have test samples, or none")
    settings = [task.transform.settings() if isinstance(task.transform, Transform) else None for task in tasks]
    if None in settings or any(s != settings[0] for s in settings):
        raise ConfigError(
            f"stream {name}: its tasks need one sparcl.streams.Transform, the same for all: mean and standard deviation"
            " are all that a run remembers of it"
        )
    for task in tasks:
        if tuple((inputs := task.train.inputs).shape[1:]) != tuple(made.input_shape):
            raise ConfigError(
                f"stream {name} says that samples have shape {list(made.input_shape)}, but those of task"
                f" {task.index + 1} have {list(inputs.shape[1:])}"
            )
    return replace(made, tasks=tasks)
