"""A Learner made again from a checkpoint: its model, method, sparsifier, optimizer and settings, ours alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from sparcl import seeds
from sparcl.checkpoint import checks
from sparcl.checkpoint.tree import State
from sparcl.errors import CheckpointError
from sparcl.learner import frozen
from sparcl.learner.budget import saved_budget
from sparcl.learner.classes import classes_in
from sparcl.learner.frozen import FREEZE, UNTRAINED
from sparcl.learner.latents import LATENTS
from sparcl.learner.micro import MICRO_BATCH
from sparcl.learner.refusals import MOST_SEED, replays
from sparcl.learner.saving import COUNTS, INPUT_SHAPE, KNOWN, MADE_FROM, PARTS, RUN, settings_in
from sparcl.learner.schedule import Factor, of_checkpoint
from sparcl.methods import Method
from sparcl.methods.respond import classifier
from sparcl.nn.layers import ELEMENTWISE_OPTIMIZERS
from sparcl.recorded import made_again, misfit
from sparcl.sparsity import Sparsifier


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
    settings = settings_in(state)
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
    bounds = {"seed": (0, MOST_SEED)}
    counts = {name: checks.integer(settings[name], name, *bounds.get(name, (1,))) for name in COUNTS}
    if not replays(cast(Method, made[1])):  # whatever was given had no effect
        counts.pop("replay_batch_size")
    more = {**saved_budget(settings["budget"]), **_growth(state), "drop_last": drop_last}
    more |= of_checkpoint(settings, schedule)
    more |= {MICRO_BATCH: checks.integer(settings[MICRO_BATCH], MICRO_BATCH)} if MICRO_BATCH in settings else {}
    more |= {LATENTS: settings[LATENTS]} if LATENTS in settings else {}
    more |= {FREEZE: frozen.names_in(settings[FREEZE])} if FREEZE in settings else {}
    return cast(Any, made), {**counts, **more, **_shape_in(settings)}


LARGEST_SAMPLE = 1 << 24
"""Values: a pass of zeros of that shape goes through the model where `auto` chooses."""


def _shape_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of a sample that a Learner was told, which another choice of layers, and other last bits, depend on."""
    if (shape := settings.get(INPUT_SHAPE)) is None:
        return {}
    if not isinstance(shape, list) or not shape:
        raise CheckpointError(f"the input shape in the checkpoint is {shape!r:.40}, not the sizes of a sample")
    sizes = tuple(checks.integer(size, "the input shape", 1) for size in shape)
    return {INPUT_SHAPE: sizes} if math.prod(sizes) <= LARGEST_SAMPLE else {}


def _growth(state: State) -> dict[str, Any]:
    """The head of a Learner that grows is made without columns, and grows as it is restored."""
    classes = classes_in(checks.keys(state, PARTS, "the state")["learner"])
    return {"classes": ()} if classes["grows"] else {}


def _made(part: str, recipe: Any, depth: int) -> Any:
    kind, arguments = _call(part, recipe, depth)
    with checks.refusing(f"the {part}"), made_again(), seeds.given_back():  # a model draws weights, which are not kept
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
    classes = classes_in(state["learner"])
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
        if isinstance(value, str):
            continue  # a name, which the model checks
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
