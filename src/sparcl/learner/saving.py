"""A Learner's complete state: what it holds, how it is put back, and how a Learner is made again from it.

`Learner.save`, `Learner.load` and `sparcl run` stand on this. A state comes from anyone: it is checked part by part
before it is used, and after it has been loaded it is taken once more and must be the same to the last bit, so that
nothing is dropped, bent or invented in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparcl.checkpoint import by_parameter, canonical, checks, tree
from sparcl.checkpoint.tree import State
from sparcl.errors import CheckpointError, TrainingError
from sparcl.learner import frozen
from sparcl.learner.average import Average
from sparcl.learner.budget import Budget, check_pace
from sparcl.learner.classes import Classes, classes_in
from sparcl.learner.frozen import FREEZE, UNTRAINED, Frozen
from sparcl.learner.latents import LATENTS, Latents
from sparcl.learner.micro import MICRO_BATCH
from sparcl.learner.position import Position, StreamPosition
from sparcl.learner.refusals import replays
from sparcl.learner.schedule import USUAL, Rate
from sparcl.methods import METHODS, Method
from sparcl.methods.method import RehearsalMethod
from sparcl.methods.respond import classifier
from sparcl.nn.resnet import ResNet
from sparcl.nn.small import MLP, ConvNet
from sparcl.recorded import Recorded
from sparcl.seeds import Generators
from sparcl.sparsity import DDR, DGM, SPARSIFIERS, TDM, Sparsifier
from sparcl.sparsity.patterns import Pattern
from sparcl.streams.augment import Transform
from sparcl.streams.lazy import Inputs, Lazy, witnesses
from sparcl.streams.task import Task

RUN = "run"
"""What `sparcl run` adds to the parts of a state."""

PARTS = ("settings", "model", "layers", "optimizer", "learner")
COUNTS = ("batch_size", "replay_batch_size", "seed")
SETTINGS = (*COUNTS, "drop_last")
LIMITS = (*SETTINGS, "budget")
MADE_FROM = ("model", "method", "sparsifier")
INPUT_SHAPE = "input_shape"
"""Of one sample, where it was told: `auto` asks what it measured for layers that are used so."""
STORED_AS = "stored_as"
"""Of a checkpoint: the dtype of the samples that were learned, where no buffer tells it."""
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}

STRIDES = "strides"
"""Of the tensors that lie in memory in another order than the default one: PyTorch's results depend on it."""

KNOWN: dict[str, dict[str, Callable[..., Any]]] = {
    "model": {kind.__name__: kind for kind in (ResNet, ConvNet, MLP)},
    "method": {getattr(kind, "__name__", name): kind for name, kind in METHODS.items()},
    "sparsifier": {getattr(kind, "__name__", name): kind for name, kind in SPARSIFIERS.items()}
    | {kind.__name__: kind for kind in (TDM, DGM, DDR, Pattern)},
}
"""What a checkpoint may ask to be made: our own classes and no others."""


class Saved(Protocol):
    """What is read of a Learner, and written when its state is put back."""

    model: nn.Module
    method: Method
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    average: Average | None
    generators: Generators
    settings: dict[str, Any]
    recipes: dict[str, Any]
    backend: str
    budget: Budget
    pace: list[list[int]]
    classes: Classes
    transform: Transform | None
    stored_as: torch.dtype | None
    latents: Latents | None
    learned: int
    steps: int
    position: Position | None
    stream: StreamPosition | None


class Made(Protocol):
    """What is read of a Learner as it is made."""

    batch_size: int
    seed: int
    drop_last: bool
    frozen: Frozen
    latents: Latents | None
    budget: Budget
    rate: Rate


def settings_of(
    learner: Made,
    *,
    replay_batch_size: int,
    clip_grad_norm: float | None,
    average: float | None,
    micro_batch: int | None,
    input_shape: tuple[int, ...] | None,
) -> dict[str, Any]:
    """What a checkpoint keeps of the numbers that a Learner was made with: it goes on with the same ones only."""
    latents = None if learner.latents is None else learner.latents.kind
    shape = None if input_shape is None else list(input_shape)
    named = {LATENTS: latents, MICRO_BATCH: micro_batch, INPUT_SHAPE: shape}
    return {
        "batch_size": learner.batch_size,
        "seed": learner.seed,
        **learner.frozen.settings,
        **{name: value for name, value in named.items() if value is not None},
        "budget": {learner.budget.kind: learner.budget.amount},
        "replay_batch_size": replay_batch_size,
        "lr_schedule": learner.rate.name,
        "warmup": learner.rate.warmup,
        "clip_grad_norm": clip_grad_norm,
        "average": average,
        "drop_last": learner.drop_last,
    }


def recipes(model: nn.Module, method: object, sparsifier: object) -> dict[str, Any]:
    """How the three are made again; None for what is not ours or was made with more than plain values."""
    parts = zip(MADE_FROM, (model, method, sparsifier), strict=True)
    return {
        part: made.recipe() if isinstance(made, Recorded) and type(made) in KNOWN[part].values() else None
        for part, made in parts
    }


def capture(learner: Saved) -> State:
    """The complete state of a Learner, between two steps.

    Raises:
        TrainingError: weights or statistics are NaN or infinite; such a state is no place to go on from.
    """
    state: State = {
        "settings": {
            **{name: value for name, value in learner.settings.items() if value != USUAL.get(name, ...)},
            "made_from": learner.recipes,
            STRIDES: canonical.strides(learner.model),
        },
        **canonical.capture(learner.model, learner.sparsifier.layers, learner.optimizer),
        "learner": _progress(learner),
    }
    values = {**state["model"], **{name: layer["values"] for name, layer in state["layers"].items()}}
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(f"{name} became NaN or infinite {_where(learner)}: lower the learning rate")
    return state


def check_made_alike(learner: Saved, state: Mapping[str, Any]) -> None:
    """Refuse the state of a Learner with another model, method or settings, before any of it is taken.

    Raises:
        CheckpointError: it is another's, or not well formed.
    """
    checks.keys(state, PARTS, "the state")
    settings = settings_in(state)
    for name in (*LIMITS, *USUAL, FREEZE, LATENTS, MICRO_BATCH):
        if name == "replay_batch_size" and not replays(learner.method):
            continue
        if (saved := settings.get(name)) != (value := learner.settings.get(name)):
            raise CheckpointError(f"{name.replace('_', ' ')} is {value} here, but {saved!r:.40} in the checkpoint")
    for part in MADE_FROM:
        saved, ours = state["settings"]["made_from"][part], learner.recipes[part]
        if saved is not None and ours is not None and (where := tree.difference(saved, ours)) is not None:
            raise CheckpointError(f"the checkpoint was made with another {part}: its {where} differs")


def check_apart(learner: Saved, state: Mapping[str, Any]) -> None:
    """Refuse a state that is a Learner's own memory: what has changed since has changed in it as well.

    Raises:
        CheckpointError: it is.
    """
    own = {t.data_ptr() for t in (*learner.model.parameters(), *learner.model.buffers()) if t.numel()}
    weights = state["model"].values() if isinstance(state["model"], Mapping) else ()
    if any(isinstance(t, Tensor) and t.numel() and t.data_ptr() in own for t in weights):
        raise CheckpointError(
            "the state is this Learner's own, which has moved on with it: restore a copy.deepcopy of it"
        )


def restore(learner: Saved, state: Mapping[str, Any]) -> None:
    """Give a Learner the state that `capture` took from one that was made alike.

    Raises:
        CheckpointError: it is not well formed; the Learner may have a part of it.
    """
    settings = settings_in(state)
    with checks.refusing("the classes"):
        learner.classes.restore(classes_in(state["learner"]), learner.optimizer)
    if learner.backend == "reference" and STRIDES in settings:  # native has one order for all
        canonical.lay_out(learner.model, settings[STRIDES])
    with checks.refusing("the state of the model and its optimizer"):
        canonical.restore(learner.model, learner.sparsifier.layers, learner.optimizer, state, _fits(learner))
    with checks.refusing("the state of the method and the sparsifier"):
        names = canonical.parameter_names(learner.model)
        by_name = {name: parameter for parameter, name in names.items()}
        frozen.restore(by_name, state["learner"].get("frozen", []), settings.get(UNTRAINED, []))
        _go_on(learner, state["learner"])
        again = capture(learner)
        again["learner"].pop("frozen", None)  # what is passed in may have more that is frozen
        saved = {**state, "learner": {k: v for k, v in state["learner"].items() if k != "frozen"}}
    for part in PARTS[1:]:
        if (where := tree.difference(_portable(saved[part]), _portable(again[part]), part)) is not None:
            raise CheckpointError(f"the checkpoint does not fit: {where} was not taken as it is")


def settings_in(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings in a state; one of an earlier version does not tell how tensors lay in memory."""
    settings = state["settings"]
    may = (STRIDES, FREEZE, UNTRAINED, LATENTS, MICRO_BATCH, INPUT_SHAPE, *USUAL)
    told = [name for name in may if isinstance(settings, Mapping) and name in settings]
    return {**USUAL, **checks.keys(settings, [*LIMITS, "made_from", *told], "settings")}


def _progress(learner: Saved) -> State:
    """What is needed to go on to the same bits beside the weights, masks and optimizer state."""
    position = learner.position
    names = canonical.parameter_names(learner.model)
    still = [name for p, name in names.items() if not p.requires_grad]
    return {
        **({"frozen": still} if still else {}),
        **({} if learner.stream is None else {"stream": dict(vars(learner.stream))}),
        **({} if learner.average is None else {"average": learner.average.state_dict()}),
        **_stored_as(learner),
        "learned": learner.learned,
        "steps": learner.steps,
        "pace": learner.pace,
        "classes": learner.classes.state_dict(),
        "transform": learner.transform.settings() if isinstance(learner.transform, Transform) else None,
        "position": None if position is None else position.state_dict(),
        "method": _remembered(learner),
        "sparsifier": learner.sparsifier.state_dict(),
        "generators": learner.generators.state_dict(),
    }


def _remembered(learner: Saved) -> State:
    """The method's state, in the form that all backends share."""
    state = learner.method.state_dict()
    if not learner.method.by_parameter:
        return state
    return by_parameter.capture(state, learner.model, learner.sparsifier.layers)


def _go_on(learner: Saved, state: Mapping[str, Any]) -> None:
    """Take what `_progress` gave."""
    pace = state["pace"]
    if not isinstance(pace, list) or not all(isinstance(steps, list) for steps in pace):
        raise CheckpointError("the pace in the checkpoint is no list of lists")
    check_pace(pace, CheckpointError)
    learner.pace = [list(steps) for steps in pace]
    learner.transform = None if state["transform"] is None else Transform.of(state["transform"])
    learner.learned = checks.integer(state["learned"], "learned")
    learner.steps = checks.integer(state["steps"], "steps")
    learner.position = None if state["position"] is None else Position(**state["position"])
    budget = learner.budget = Budget.under_way(learner.settings["budget"], learner.position)
    if learner.position is not None:
        learner.position.check(learner.learned, int(budget.amount) if budget.kind == "epochs" else None)
    learner.stream = StreamPosition.of(state["stream"], learner.position) if "stream" in state else None
    if learner.average is not None:
        learner.average.load_state_dict(state["average"])
    remembered = state["method"]
    if learner.method.by_parameter:
        remembered = by_parameter.restore(remembered, learner.model, learner.sparsifier.layers)
    learner.method.load_state_dict(remembered)
    _check_memory(learner)
    learner.stored_as = _remembered_as(learner) or _stored_in(state)
    learner.sparsifier.load_state_dict(state["sparsifier"])
    learner.generators.load_state_dict(state["generators"])


def _remembered_as(learner: Saved) -> torch.dtype | None:
    """Dtype of the samples that the buffer holds as they came; None where it holds none, or latents."""
    buffer = None if learner.latents is not None else learner.method.buffer
    kind = None if buffer is None else buffer.kind()
    return None if kind is None else kind[0]


def _stored_as(learner: Saved) -> State:
    """The dtype of the samples that were learned, where the buffer does not tell it."""
    if learner.stored_as is None or _remembered_as(learner) is not None:
        return {}
    return {STORED_AS: str(learner.stored_as).removeprefix("torch.")}


def _stored_in(state: Mapping[str, Any]) -> torch.dtype | None:
    """That dtype out of a checkpoint; None in one of an earlier version."""
    if (name := state.get(STORED_AS)) not in (None, *DTYPES):
        raise CheckpointError(f"samples in the checkpoint were stored as {name!r:.40}; allowed: {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def _check_memory(learner: Saved) -> None:
    """What the buffer remembers must be of the classes that the model has, as far as that is known without its use."""
    buffer = learner.method.buffer
    if buffer is None or buffer.labels is None:
        return
    if isinstance(learner.method, RehearsalMethod) and learner.method.stores_logits and buffer.logits is None:
        raise CheckpointError("the buffer in the checkpoint lacks 'logits'")
    columns = None if buffer.logits is None else buffer.logits.shape[1]
    if learner.classes.grows:  # what was remembered before a class came has no column for it
        columns = None if columns is None else max(columns, len(learner.classes.names))
    if learner.recipes["model"] is not None:  # one of ours, whose last layer is the classifier
        classes = getattr(classifier(learner.model), "out_features", columns)
        if columns not in (None, classes):
            raise CheckpointError(f"the buffer's logits in the checkpoint are of {columns} classes, not {classes}")
        columns = classes
    if columns is not None:
        checks.within(buffer.labels, "the buffer's labels", 0, columns - 1)


def _where(learner: Saved) -> str:
    """Where training stands, in words."""
    if learner.stream is not None:
        return f"after step {learner.stream.steps} of the stream"
    if (position := learner.position) is None:
        return f"after task {learner.learned}"
    return f"in task {position.task + 1}, epoch {position.epoch + 1}, step {position.step}"


def _fits(learner: Saved) -> canonical.Fits:
    pattern = learner.sparsifier.pattern

    def fits(index: Tensor, shape: tuple[int, ...]) -> bool:
        units = pattern.of_index(index, shape)
        return len(units) * pattern.block == len(index) and torch.equal(pattern.expand(units, shape), index)

    return fits


def check_task(position: Position, task: Task, sparsifier: Sparsifier) -> None:
    """A loaded position must stand inside this very task: the same samples in the same order.

    Raises:
        CheckpointError: the task has other data, or the state speaks of samples that it has not.
    """
    samples = len(task.train)
    if position.data is not None and not same_data(position.data, fingerprint(task.train.inputs, task.train.labels)):
        raise CheckpointError(f"task {task.index + 1} has other data than the one the loaded state stands in")
    if position.order is not None:
        checks.within(position.order, "order", 0, samples - 1)
    with checks.refusing("what is known of the task's samples"):
        sparsifier.keep(torch.arange(samples))


def _portable(part: Any) -> Any:
    """Less what only an accelerator has, which another device neither takes nor gives."""
    if isinstance(part, Mapping) and "generators" in part:
        return {**part, "generators": {k: v for k, v in part["generators"].items() if k != "cuda"}}
    return part


def fingerprint(inputs: Inputs, labels: Tensor) -> str:
    """SHA-256 over a task's training samples: on resume it identifies the data.

    Of inputs that are read lazily it looks at some, evenly spaced (`lazy.witnesses`), and at all labels; of others it
    is two, over all of them and, after a space, over those that would be looked at: see `same_data`.
    """
    kind = f"{inputs.dtype} {list(inputs.shape)} {labels.dtype}".encode()

    def over(looked_at: Tensor, mark: bytes) -> str:
        digest = hashlib.sha256(kind + mark)
        for tensor in (looked_at, labels):
            digest.update(tree.buffer(tensor))
        return digest.hexdigest()

    if isinstance(inputs, Lazy):
        return over(inputs.witness(), b"lazy")
    return f"{over(inputs, b'')} {over(inputs[witnesses(len(inputs))], b'lazy')}"


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same samples, held in memory or read lazily: by all that both looked at."""
    ours, theirs = one.split(), other.split()
    return ours[0] == theirs[0] if len(ours) == len(theirs) else bool(set(ours) & set(theirs))
