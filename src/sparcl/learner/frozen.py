"""What of a model does not learn: named parts of it, and parameters that came with `requires_grad=False`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from sparcl.errors import CheckpointError, ConfigError

FREEZE, UNTRAINED = "freeze", "untrained"
"""Of a checkpoint's settings: parts that were frozen by name, and parameters that were when the Learner was made."""

MOST_NAMED = 20
"""Names that a refusal lists."""


class Frozen:
    """Freezes parts of a model, and keeps all of it that is frozen in evaluation mode while the rest trains.

    A module is frozen that was named, or whose parameters, one at least, all have `requires_grad=False`: it is then
    evaluating with all that is inside it, so that no running statistic moves and nothing is dropped.

    Args:
        model: whose parts they are; their parameters get `requires_grad=False`.
        freeze: names or shell patterns of modules, in a sequence or separated by commas; `stem` also where a network
            says what it means by that (`parts`).

    Raises:
        ConfigError: a name that matches no module, parts without parameters, or a model that would not learn at all.
    """

    def __init__(self, model: nn.Module, freeze: str | Sequence[str] | None = None) -> None:
        self.model = model
        self.names = () if freeze is None else named(model, freeze)
        untrained = [name for name, p in model.named_parameters() if not p.requires_grad]
        parts = [model.get_submodule(name) for name in self.names]
        self.held_back = {id(p) for part in parts for p in part.parameters()}
        """Parameters of the named parts, by `id`: no optimizer is given them."""
        if self.names and not self.held_back:
            raise ConfigError(
                f"freeze names {', '.join(self.names)}, which hold no weights: there is nothing to freeze"
            )
        if self.names and all(id(p) in self.held_back or not p.requires_grad for p in model.parameters()):
            raise ConfigError(f"freeze names {', '.join(self.names)}, and then nothing of the model would learn")
        for part in parts:
            part.requires_grad_(False)
        self._named = parts  # themselves: a copy of the Learner has its own
        self.settings: dict[str, Any] = {}
        """As a checkpoint keeps them; nothing where nothing was frozen when the Learner was made."""
        if self.names:
            self.settings[FREEZE] = list(self.names)
        if untrained:
            self.settings[UNTRAINED] = untrained

    def train(self) -> None:
        """The model in training mode, what is frozen of it now in evaluation mode."""
        self.model.train()
        for module in self.modules():
            module.eval()

    def modules(self) -> list[nn.Module]:
        """The outermost modules that are frozen now."""
        found: list[nn.Module] = []
        ways = [self.model]
        while ways:
            module = ways.pop()
            if self._is_frozen(module):
                found.append(module)
            else:
                ways += module.children()
        return found

    def _is_frozen(self, module: nn.Module) -> bool:
        own = list(module.parameters())
        return any(module is part for part in self._named) or (bool(own) and not any(p.requires_grad for p in own))


def named(model: nn.Module, freeze: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the outermost modules that `freeze` asks for, in the order of the model.

    Raises:
        ConfigError: nothing is named, or a name matches no module.
    """
    if not isinstance(freeze, Collection):
        raise ConfigError(f"freeze {freeze!r:.40} is not allowed; use names or shell patterns of modules")
    patterns = [part.strip() for part in freeze.split(",")] if isinstance(freeze, str) else list(freeze)
    modules = [name for name, _ in model.named_modules() if name]
    parts = [*_several(model), *dict(model.named_children())]
    allowed = ", ".join(parts[:MOST_NAMED]) or "none, the model has no parts"
    told = f"allowed are names or shell patterns of modules: {allowed}, and what is inside them"
    wanted: set[str] = set()
    for pattern in _spelled_out(model, patterns):
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"freeze names {pattern!r:.80}; {told}")
        found = [name for name in modules if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(f"freeze names {pattern!r:.80}, which the model has not; {told}")
        wanted.update(found)
    if not wanted:
        raise ConfigError(f"freeze names nothing; leave it out, or {told}")
    return tuple(name for name in modules if name in wanted and not _inside(name, wanted))


def _spelled_out(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """What names several modules, with their own names in its place."""
    parts = _several(model)
    return [name for pattern in patterns for name in parts.get(pattern, (pattern,))]


def _several(model: nn.Module) -> Mapping[str, Sequence[str]]:
    """Names that a network has for several of its modules."""
    parts: Mapping[str, Sequence[str]] = getattr(model, "parts", {})
    return parts


def _inside(name: str, others: set[str]) -> bool:
    """Whether a module lies in another one of these."""
    pieces = name.split(".")
    return any(".".join(pieces[:k]) in others for k in range(1, len(pieces)))


def names_in(value: Any) -> list[str]:
    """A list of names out of a checkpoint; CheckpointError where it is none."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"what is frozen in the checkpoint is no list of names: {value!r:.60}")
    return value


def freeze(parameters: Mapping[str, nn.Parameter], names: Any) -> None:
    """Freeze the parameters of these names out of a checkpoint.

    Raises:
        CheckpointError: no names, or unknown ones.
    """
    for name in names_in(names):
        if name not in parameters:
            raise CheckpointError(f"the checkpoint has frozen the unknown parameter {name!r:.80}")
        parameters[name].requires_grad_(False)


def restore(parameters: Mapping[str, nn.Parameter], frozen: Any, untrained: Any) -> None:
    """Freeze the parameters `frozen`, and let go of the others that the saved Learner was made with (`untrained`).

    What is passed in may have more that is frozen: it stays so.

    Raises:
        CheckpointError: no names, or unknown ones.
    """
    freeze(parameters, frozen)
    for name in names_in(untrained):
        if name in parameters and name not in frozen:
            parameters[name].requires_grad_(True)
