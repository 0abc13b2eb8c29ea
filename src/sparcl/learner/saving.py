"""A Learner's complete state: what it holds, how it is put back, and how a Learner is made again from it.

`Learner.save`, `Learner.load` and `sparcl run` stand on this. A state comes from anyone: it is checked part by part
before it is used, and after it has been loaded it is taken once more and must be the same to the last bit, so that
nothing is dropped, bent or invented in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import canonical, checks, tree
from sparcl.checkpoint.tree import State
from sparcl.errors import CheckpointError, TrainingError
from sparcl.learner import frozen
from sparcl.learner.budget import KINDS, Budget, check_amount, check_pace
from sparcl.learner.classes import Classes, check_state
from sparcl.learner.frozen import FREEZE, UNTRAINED
from sparcl.learner.latents import LATENTS
from sparcl.learner.position import Position, StreamPosition
from sparcl.learner.schedule import USUAL, Factor, of_checkpoint
from sparcl.methods import METHODS, Method
from sparcl.methods.method import RehearsalMethod
from sparcl.methods.respond import classifier
from sparcl.nn.layers import ELEMENTWISE_OPTIMIZERS
from sparcl.nn.resnet import ResNet
from sparcl.nn.small import MLP, ConvNet
from sparcl.recorded import Recorded, misfit
from sparcl.seeds import Generators
from sparcl.sparsity import DDR, DGM, SPARSIFIERS, TDM, Sparsifier
from sparcl.sparsity.patterns import Pattern
from sparcl.streams.augment import Transform
from sparcl.streams.lazy import Inputs, Lazy
from sparcl.streams.task import Task

RUN = "run"
"""What `sparcl run` adds to the parts of a state."""

PARTS = ("settings", "model", "layers", "optimizer", "learner")
COUNTS = ("batch_size", "replay_batch_size", "seed")
SETTINGS = (*COUNTS, "drop_last")
LIMITS = (*SETTINGS, "budget")
MADE_FROM = ("model", "method", "sparsifier")
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
    generators: Generators
    settings: dict[str, Any]
    recipes: dict[str, Any]
    backend: str
    budget: Budget
    pace: list[list[int]]
    classes: Classes
    transform: Transform | None
    learned: int
    steps: int
    position: Position | None
    stream: StreamPosition | None


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
            STRIDES: canonical.strides(learner.model, learner.sparsifier.layers),
        },
        **canonical.capture(learner.model, learner.sparsifier.layers, learner.optimizer),
        "learner": _progress(learner),
    }
    values = {**state["model"], **{name: layer["values"] for name, layer in state["layers"].items()}}
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(f"{name} became NaN or infinite {_where(learner)}: lower the learning rate")
    return state


def restore(learner: Saved, state: Mapping[str, Any]) -> None:
    """Give a Learner the state that `capture` took from one of the same model, method and settings.

    Raises:
        CheckpointError: it is another's, or not well formed.
    """
    checks.keys(state, PARTS, "the state")
    settings = _settings(state)
    for name in (*SETTINGS, "budget", FREEZE, LATENTS):
        if (saved := settings.get(name)) != (value := learner.settings.get(name)):
            raise CheckpointError(f"{name.replace('_', ' ')} is {value} here, but {saved!r:.40} in the checkpoint")
    for part in MADE_FROM:
        saved, ours = state["settings"]["made_from"][part], learner.recipes[part]
        if saved is not None and ours is not None and (where := tree.difference(saved, ours)) is not None:
            raise CheckpointError(f"the checkpoint was made with another {part}: its {where} differs")
    with checks.refusing("the classes"):
        learner.classes.restore(_classes(state), learner.optimizer)
    if learner.backend == "reference" and STRIDES in settings:  # native has one order for all
        canonical.lay_out(learner.model, learner.sparsifier.layers, settings[STRIDES])
    with checks.refusing("the state of the model and its optimizer"):
        canonical.restore(learner.model, learner.sparsifier.layers, learner.optimizer, state, _fits(learner))
    with checks.refusing("the state of the method and the sparsifier"):
        names = canonical.parameter_names(learner.model, learner.sparsifier.layers)
        by_name = {name: parameter for parameter, name in names.items()}
        frozen.restore(by_name, state["learner"].get("frozen", []), settings.get(UNTRAINED, []))
        _go_on(learner, state["learner"])
        again = capture(learner)
        again["learner"].pop("frozen", None)  # what is passed in may have more that is frozen
        saved = {**state, "learner": {k: v for k, v in state["learner"].items() if k != "frozen"}}
    for part in PARTS[1:]:
        if (where := tree.difference(_portable(saved[part]), _portable(again[part]), part)) is not None:
            raise CheckpointError(f"the checkpoint does not fit: {where} was not taken as it is")


def _settings(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings in a state; one of an earlier version does not tell how tensors lay in memory."""
    settings = state["settings"]
    may = (STRIDES, FREEZE, UNTRAINED, LATENTS, *USUAL)
    told = [name for name in may if isinstance(settings, Mapping) and name in settings]
    return {**USUAL, **checks.keys(settings, [*LIMITS, "made_from", *told], "settings")}


def _progress(learner: Saved) -> State:
    """What is needed to go on to the same bits beside the weights, masks and optimizer state."""
    position = learner.position
    names = canonical.parameter_names(learner.model, learner.sparsifier.layers)
    still = [name for p, name in names.items() if not p.requires_grad]
    return {
        **({"frozen": still} if still else {}),
        **({} if learner.stream is None else {"stream": dict(vars(learner.stream))}),
        "learned": learner.learned,
        "steps": learner.steps,
        "pace": learner.pace,
        "classes": learner.classes.state_dict(),
        "transform": None if learner.transform is None else learner.transform.settings(),
        "position": None if position is None else dict(vars(position)),
        "method": learner.method.state_dict(),
        "sparsifier": learner.sparsifier.state_dict(),
        "generators": learner.generators.state_dict(),
    }


def _go_on(learner: Saved, state: Mapping[str, Any]) -> None:
    """Take what `_progress` gave."""
    budget, pace = learner.budget, state["pace"]
    if not isinstance(pace, list) or not all(isinstance(steps, list) for steps in pace):
        raise CheckpointError("the pace in the checkpoint is no list of lists")
    check_pace(pace, CheckpointError)
    learner.pace = [list(steps) for steps in pace]
    learner.transform = None if state["transform"] is None else Transform.of(state["transform"])
    learner.learned = checks.integer(state["learned"], "learned")
    learner.steps = checks.integer(state["steps"], "steps")
    learner.position = None if state["position"] is None else Position(**state["position"])
    if learner.position is not None:
        learner.position.check(learner.learned, int(budget.amount) if budget.kind == "epochs" else None)
    learner.stream = StreamPosition.of(state["stream"], learner.position) if "stream" in state else None
    learner.method.load_state_dict(state["method"])
    _check_memory(learner)
    learner.sparsifier.load_state_dict(state["sparsifier"])
    learner.generators.load_state_dict(state["generators"])


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
    if position.data is not None and position.data != fingerprint(task.train.inputs, task.train.labels):
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


def make(
    state: State,
    model: nn.Module | None,
    method: Method | None,
    sparsifier: Sparsifier | None,
    schedule: Factor | None = None,
) -> tuple[tuple[nn.Module, Method, Sparsifier], dict[str, Any]]:
    """What a Learner is made of: what is given, the rest made anew from the checkpoint; and its settings.

    Raises:
        CheckpointError: a part is not one of ours, or was made with values that cannot be stored.
    """
    state.pop(RUN, None)
    checks.keys(state, PARTS, "the state")
    settings = _settings(state)
    given = dict(zip(MADE_FROM, (model, method, sparsifier), strict=True))
    recipes = checks.keys(settings["made_from"], MADE_FROM, "settings")
    for part, recipe in recipes.items():
        if given[part] is None and recipe is None:
            raise CheckpointError(
                f"the checkpoint does not say how its {part} was made: pass Learner.load(..., {part}=...)"
            )
    if model is None:
        _check_model(recipes["model"], state)
    made = tuple(
        _made(part, recipes[part], 0) if part_given is None else part_given for part, part_given in given.items()
    )
    frozen.freeze(dict(cast(nn.Module, made[0]).named_parameters()), settings.get(UNTRAINED, []))
    if not isinstance(drop_last := settings["drop_last"], bool):
        raise CheckpointError(f"drop_last in the checkpoint is {drop_last!r:.40}, not true or false")
    counts = {name: checks.integer(settings[name], name) for name in COUNTS}
    more = {**_budget(settings["budget"]), **_growth(state), "drop_last": drop_last}
    more |= of_checkpoint(settings, schedule)
    more |= {LATENTS: settings[LATENTS]} if LATENTS in settings else {}
    more |= {FREEZE: frozen.names_in(settings[FREEZE])} if FREEZE in settings else {}
    return cast(Any, made), {**counts, **more}


def _growth(state: State) -> dict[str, Any]:
    """The head of a Learner that grows is made without columns, and grows as it is restored."""
    return {"classes": ()} if _classes(state)["grows"] else {}


def _classes(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a state says of the Learner's columns, checked."""
    learner = checks.keys(state, PARTS, "the state")["learner"]
    told = checks.keys(learner, learner if isinstance(learner, Mapping) else (), "the Learner's state")
    check_state(classes := told.get("classes"))
    return cast(Mapping[str, Any], classes)


def _budget(saved: Any) -> dict[str, float]:
    if not isinstance(saved, dict) or len(saved) != 1 or not saved.keys() <= set(KINDS):
        raise CheckpointError(f"the budget in the checkpoint is not one of: {', '.join(KINDS)}")
    ((kind, amount),) = saved.items()
    if not isinstance(amount, int | float):
        raise CheckpointError(f"the budget in the checkpoint is {amount!r:.40}")
    with checks.refusing("the budget"):
        check_amount(kind, amount)
    return {kind: amount}


def _made(part: str, recipe: Any, depth: int) -> Any:
    kind, arguments = _call(part, recipe, depth)
    with checks.refusing(f"the {part}"), seeds.given_back():  # a model draws weights, which are not kept
        return kind(**arguments)


def _call(part: str, recipe: Any, depth: int) -> tuple[type[Any], dict[str, Any]]:
    """The class and the arguments that a recipe names."""
    checks.keys(recipe, ("kind", "arguments"), f"the {part}")
    if not isinstance(recipe["kind"], str) or recipe["kind"] not in KNOWN[part] or depth > 2:
        raise CheckpointError(f"the checkpoint names an unknown {part}; allowed: {', '.join(KNOWN[part])}")
    arguments = {
        name: _made(part, value, depth + 1) if isinstance(value, dict) and "kind" in value else _tupled(value)
        for name, value in checks.keys(recipe["arguments"], recipe["arguments"], f"the {part}").items()
    }
    kind = cast(type[Any], KNOWN[part][recipe["kind"]])
    if (name := misfit(kind, arguments)) is not None:
        raise CheckpointError(f"the {part}'s {name} in the checkpoint is {arguments[name]!r:.40}, of a wrong type")
    return kind, arguments


MAX_WIDTH = 1 << 14
MOST_SPARSE = 10_000
"""Weights of a layer for one that is active: the dense form is made, whatever the file holds of it."""


def _check_model(recipe: Any, state: State) -> None:
    """A network is allocated before its weights are put in: it must be as large as the tensors that are there.

    It is made without memory first, and every weight and statistic of it looked up in the state.

    Raises:
        CheckpointError: it is larger, smaller, or of other shapes.
    """
    kind, arguments = _call("model", recipe, 0)
    _check_size(arguments)
    with checks.refusing("the model"), torch.device("meta"):
        made = kind(**arguments)
    empty = made.state_dict()
    classes = _classes(state)
    if classes["grows"]:  # a head that grew has a row for each name
        head = next(name for name, module in made.named_modules() if module is classifier(made))
        for name in (f"{head}.weight", f"{head}.bias"):
            empty[name] = empty[name].new_empty((len(classes["names"]), *empty[name].shape[1:]))
    dense, layers = (checks.keys(state[part], state[part], "the model's state") for part in ("model", "layers"))
    for name, tensor in empty.items():
        layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None:
            if name not in dense:
                raise CheckpointError(f"the model's state in the checkpoint lacks {name!r}")
            checks.tensor(dense[name], name, tensor.dtype, tuple(tensor.shape))
            continue
        values = checks.tensor(checks.keys(layer, layer, name).get("values"), name, tensor.dtype, (None,))
        if tensor.numel() > MOST_SPARSE * max(len(values), 1):
            raise CheckpointError(f"{name} in the checkpoint has {len(values)} of {tensor.numel()} weights: too few")


def _check_size(arguments: Mapping[str, Any]) -> None:
    """Sizes that can be multiplied, and a number of layers that can be looked through."""
    for name, value in arguments.items():
        for number in value if isinstance(value, tuple) else (value,):
            checks.integer(number, f"the model's {name}", 0, MAX_WIDTH)
    if isinstance(blocks := arguments.get("blocks"), tuple) and sum(blocks) > 1024:
        raise CheckpointError(f"the model in the checkpoint has {sum(blocks)} blocks; at most 1024 are allowed")


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def make_optimizer(state: Mapping[str, Any]) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """What makes an optimizer of the checkpoint's kind; its options follow when the state is restored.

    Raises:
        CheckpointError: a kind that has to be passed in, or more than one parameter group.
    """
    saved = checks.keys(checks.keys(state, PARTS, "the state")["optimizer"], ("kind", "groups", "state"), "optimizer")
    known = {kind.__name__: kind for kind in ELEMENTWISE_OPTIMIZERS}
    if saved["kind"] not in tuple(known) or not isinstance(saved["groups"], list) or len(saved["groups"]) != 1:
        raise CheckpointError(
            "the checkpoint's optimizer is not a plain one of ours: pass Learner.load(..., optimizer=)"
        )
    return known[saved["kind"]]


def fingerprint(inputs: Inputs, labels: Tensor) -> str:
    """SHA-256 over a task's training samples: on resume it identifies the data.

    Of inputs that are read lazily it looks at some, evenly spaced (`Lazy.witness`), and at all labels.
    """
    digest = hashlib.sha256(f"{inputs.dtype} {list(inputs.shape)} {labels.dtype}".encode())
    if isinstance(inputs, Lazy):
        digest.update(b"lazy")
        inputs = inputs.witness()
    for tensor in (inputs, labels):
        digest.update(tree.buffer(tensor))
    return digest.hexdigest()
