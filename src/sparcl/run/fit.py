"""A memory budget: the batch, buffer and sparsity that a process of so many bytes can train with.

What the user named is kept; of the rest as little as possible is given up, in this order: how the buffer holds samples,
sparsity (up to .95), batch size (halved, down to 8), whole passes (micro-batches of it), batch size (down to 2), buffer
(halved). See `run/choosing.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sparcl import methods
from sparcl.errors import ConfigError, DataError, one_line, out_of_memory
from sparcl.learner import Learner
from sparcl.learner.refusals import check_kinds
from sparcl.methods.buffer import parse_bytes
from sparcl.methods.storage import make_storage
from sparcl.nn.sizes import checked_shape
from sparcl.run import build, trial
from sparcl.run.choosing import FREE, Choice, Costs, choose, megabytes
from sparcl.run.experiment import MOST, Experiment, check_range
from sparcl.streams.lazy import Lazy
from sparcl.streams.split import from_arrays
from sparcl.streams.task import Stream
from sparcl.whole import is_whole

SAID_OTHERWISE = {"max_memory": "name it memory", "max_seconds": "name it seconds", "model": "it is the first argument"}
"""Settings of an Experiment that `fit` takes by another name."""
WITHOUT_EFFECT = (
    *("stream", "data", "resize", "lazy", "limit_per_class", "limit_test_per_class"),
    *("classes_per_task", "class_order", "class_order_seed", "epochs", "steps", "pace", "fitted", "threads"),
)
"""Settings that are of a run's data or length: nothing of what fits depends on them."""
OF_NAMED_MODELS = ("width", "activations", "init")

PARTS = ("import", "data", "weights", "buffer", "activations", "workspace")


@dataclass(frozen=True)
class Fit:
    """Settings that fit a budget, and what they take.

    Attributes:
        memory: the budget, bytes.
        batch_size, micro_batch, buffer_size, buffer_bytes, buffer_storage, sparsity: what to train with; None: it has
            none.
        pattern: of the sparse weights, as asked.
        seconds: of each task, as asked: with `memory` all that a device has to give.
        parts: bytes expected at the peak: `import` (all that was resident before), `data`, `weights` (with positions,
            gradients, optimizer), `buffer` (full), `activations` (of a batch) and `workspace` (all else).
        given_up: what is not as asked, in words.
    """

    memory: int
    batch_size: int
    micro_batch: int | None
    buffer_size: int | None
    buffer_bytes: int | str | None
    buffer_storage: str | None
    sparsity: float | None
    pattern: str
    seconds: float | None
    parts: Mapping[str, int]
    given_up: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    def options(self) -> dict[str, Any]:
        """As settings of an `Experiment`, of `sparcl run --config`; what there is none of is left out."""
        names = ("batch_size", "micro_batch", "buffer_size", "buffer_bytes", "buffer_storage", "sparsity", "pattern")
        named = {name: getattr(self, name) for name in names} | {"max_seconds": self.seconds}
        return {name: value for name, value in named.items() if value is not None}

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.options().items())
        given_up = "; ".join(self.given_up) or "nothing"
        return f"<Fit: {chosen};\n  {self.costs()};\n  given up: {given_up}>"

    def costs(self) -> str:
        """What is expected of the budget, in one line."""
        parts = ", ".join(f"{name} {megabytes(self.parts[name])}" for name in PARTS)
        return f"{megabytes(self.peak_bytes)} MB expected of {megabytes(self.memory)}: {parts}"


def of_experiment(
    experiment: Experiment, stream: Stream, named: Collection[str], *, model: nn.Module | None = None, to_come: int = 0
) -> Fit:
    """What fits `experiment.max_memory`.

    Args:
        experiment: resolved.
        stream: what it learns; its samples are resident, unless `to_come` says how many bytes they will be.
        named: settings that the user has named, which stay as they are.
        model: in place of the experiment's.

    Raises:
        ConfigError: nothing does, or the memory of this process cannot be measured.
    """
    assert experiment.max_memory is not None
    budget = parse_bytes(experiment.max_memory, "max memory")
    if build.device(experiment.device).type != "cpu":
        raise ConfigError("max memory is of a process on the CPU; use --device cpu")
    if methods.find(experiment.method).learns_all_at_once:
        stream = stream.merged()
    storage, packing = _packing(experiment, stream)
    free = {name for name in FREE if name not in named} - (set() if storage else {"buffer_storage"})
    free -= {"buffer_size"} if "buffer_bytes" in named else set()
    free -= set() if methods.find(experiment.method).passes_in_parts else {"micro_batch"}
    free -= {"micro_batch"} if experiment.batch_size == 1 else set()
    given = experiment.buffer_bytes
    buffer = None if given is not None else experiment.buffer_size
    asked = Choice(experiment.batch_size, experiment.sparsity, buffer, micro=experiment.micro_batch)
    costs = Costs(
        _maker(experiment, stream, model), stream, to_come, None if given is None else parse_bytes(given), packing
    )
    found = choose(costs, asked, free, budget, max(stream.n_classes, 2))
    return Fit(
        memory=budget,
        batch_size=found.batch,
        micro_batch=found.micro,
        buffer_size=found.buffer,
        buffer_bytes=given,
        buffer_storage=storage if found.packed else experiment.buffer_storage,
        sparsity=found.sparsity,
        pattern=experiment.pattern,
        seconds=experiment.max_seconds,
        parts=costs.parts(found),
        given_up=tuple(_given_up(asked, found, storage)),
    )


def _given_up(asked: Choice, found: Choice, storage: str | None) -> Iterator[str]:
    """What a choice costs beside bytes."""
    if found.packed:
        yield f"buffer storage {storage}, not raw: samples are remembered a little less exactly"
    if found.sparsity != asked.sparsity:
        yield f"sparsity {found.sparsity:g}, not {asked.sparsity:g}: fewer weights learn"
    if found.micro != asked.micro:
        yield f"micro-batches of {found.micro}, not whole passes: a step takes at least a third longer"
    if found.batch != asked.batch:
        yield f"batch size {found.batch}, not {asked.batch}: an epoch has more steps, of noisier gradients"
    if found.buffer != asked.buffer:
        yield f"buffer size {found.buffer}, not {asked.buffer}: fewer samples are remembered"


def _maker(experiment: Experiment, stream: Stream, model: nn.Module | None) -> trial.Make:
    base = dataclasses.replace(experiment, epochs=None, steps=trial.STEPS, max_seconds=None, pace=())

    def make(batch: int, sparsity: float | None, micro: int | None) -> Learner:
        own = dataclasses.replace(base, batch_size=batch, sparsity=sparsity, micro_batch=micro)
        return build.learner(own, stream, network=_copied(model))

    return make


def _copied(model: nn.Module | None) -> nn.Module | None:
    """A model for a trial; ConfigError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise ConfigError(f"the model cannot be copied, and trials are made with copies: {one_line(error)}") from error


def _packing(experiment: Experiment, stream: Stream) -> tuple[str | None, int]:
    """A form of the buffer's that takes fewer bytes, and by how many less a sample; None where there is none."""
    inputs = stream.tasks[0].train.inputs
    held_so = experiment.buffer_storage not in (None, "raw") or experiment.latents is not None
    if experiment.buffer_size is None or held_so or isinstance(inputs, Lazy):
        return None, 0
    some = inputs[torch.linspace(0, len(inputs) - 1, min(len(inputs), 16)).long()]
    name = "float16" if some.is_floating_point() else "jpeg"
    try:
        storage = make_storage(name)
        storage.check(some)
        less = storage.stored(some).nbytes - some.nbytes
    except (ConfigError, DataError, ValueError):  # no Pillow; or what cannot be held so
        return None, 0
    return (name, less // len(some)) if less < 0 else (None, 0)


def for_run(experiment: Experiment, stream: Stream, named: Collection[str], say: Callable[[str], None]) -> Experiment:
    """The experiment with what fits its budget in place of what was asked; says what was chosen and what it costs.

    Raises:
        ConfigError: nothing fits.
    """
    say(f"trying what fits {experiment.max_memory}")
    found = of_experiment(experiment, stream, named)
    say(f"memory: {found.costs()}")
    say("given up for it: " + ("; ".join(found.given_up) or "nothing"))
    chosen = {k: v for k, v in found.options().items() if k not in ("max_seconds", "pattern")}
    return dataclasses.replace(experiment, **chosen, fitted=dict(found.parts))


def over(memory: Mapping[str, int | None]) -> str | None:
    """Of a result's memory: that its peak was above its budget, in words; None: it was not, or it had none."""
    most, peak = memory["budget_bytes"], memory["peak_rss_bytes"]
    if most is None or peak is None or peak <= most:
        return None
    return f"max memory was exceeded: {megabytes(peak)} MB at the peak, {megabytes(most)} MB asked; name more next time"


def fit(
    model: nn.Module | str,
    input_shape: tuple[int, ...],
    classes: int,
    memory: int | str = "256MB",
    *,
    seconds: float | None = None,
    method: str = "derpp",
    samples: int = 1000,
    dtype: str = "uint8",
    **settings: Any,
) -> Fit:
    """What this process can train with if it may hold so many bytes, all that it holds now included.

    It takes some seconds: the model is trained for a few steps on noise, a copy of it, in this process.

    Args:
        model: a network that maps [N, *input_shape] to logits [N, classes], or its name as of `sparcl run --model`.
        input_shape: of one sample.
        classes: number of logits.
        memory: of the whole process: bytes, or such as "256MB" and "1GiB".
        seconds: of training each task; goes into the answer as it is.
        method: by name, see `sparcl info`.
        samples: that are held in memory at a time: those of a task.
        dtype: of samples as they are held, uint8 or float32.
        settings: of an `Experiment`, as `sparsity=0.90`, `batch_size=16`, `buffer_size=500`, `sparsifier="dense"`.
            What is named stays as it is.

    Raises:
        ConfigError: nothing fits (it says what would), or a setting is not allowed.
    """
    if dtype not in ("uint8", "float32"):
        raise ConfigError(f"dtype {dtype!r:.40} is not allowed; use uint8 or float32")
    check_range("samples", samples, 1, MOST)
    input_shape = checked_shape(input_shape)
    if not is_whole(classes):
        raise ConfigError(f"classes {classes!r:.40} is not allowed; use 1 or more")
    if not isinstance(model, str):
        check_kinds(model=model)
    own = None if isinstance(model, str) else model
    for name in settings:
        if name in SAID_OTHERWISE:
            raise ConfigError(f"{name} is not taken here: {SAID_OTHERWISE[name]}")
        if name in WITHOUT_EFFECT or (own is not None and name in OF_NAMED_MODELS):
            raise ConfigError(f"{name} has no effect on what fits: leave it out")
    named = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    asked: dict[str, Any] = {"stream": "folder", "method": method, "device": "cpu", "max_memory": memory, **named}
    asked |= {} if seconds is None else {"max_seconds": seconds}
    asked |= {"model": model} if isinstance(model, str) else {}
    experiment = Experiment.from_dict(asked, "fit").resolve()
    build.check(experiment)
    stream = _noise(input_shape, int(classes), dtype)
    to_come = samples * (math.prod(input_shape) * (1 if dtype == "uint8" else 4) + 8)
    return of_experiment(experiment, stream, set(settings), model=own, to_come=to_come)


def _noise(shape: tuple[int, ...], classes: int, dtype: str) -> Stream:
    """Two tasks (of one class: one) of noise, as many samples as a trial asks for."""
    if classes < 1:
        raise ConfigError(f"classes {classes} is not allowed; use 1 or more")
    first = (classes + 1) // 2
    sizes = [first, classes - first] if classes > 1 else [1]
    generator = np.random.default_rng(0)
    labels = np.arange(max(trial.TESTED, 4 * classes)) % classes
    images = generator.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    values = images if dtype == "uint8" else images.astype(np.float32) / 255
    return from_arrays(values, labels, values, labels, classes_per_task=sizes, name="noise")
