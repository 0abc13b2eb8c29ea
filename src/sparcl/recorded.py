"""Objects that remember the arguments they were made with, so that a checkpoint can make them again."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from sparcl.errors import ConfigError

_AGAIN: ContextVar[bool] = ContextVar("made again", default=False)


@contextmanager
def made_again() -> Iterator[None]:
    """What is made in here was allowed when it was first made: a record stays readable, whatever is refused since."""
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)


def refuse(message: str) -> None:
    """Raise ConfigError of what is not allowed any more, or has no effect, unless it is `made_again`."""
    if not _AGAIN.get():
        raise ConfigError(message)


class Recorded:
    """A base whose instances know their class's name and arguments: `made_with`."""

    made_with: dict[str, Any]
    renamed: ClassVar[Mapping[str, str]] = {}
    """Arguments by their old names: refused with the new one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        for old, new in cls.renamed.items():
            if old in kwargs:
                raise ConfigError(f"{cls.__name__} takes {new}=, no longer {old}=")
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs)  # a copy is made without arguments
        object.__setattr__(made, "made_with", dict(list(bound.arguments.items())[1:]))
        if cls.__module__.startswith("sparcl."):  # a user's own annotations are a promise to nobody
            _check_scalars(cls, made.made_with)
        return made

    def recipe(self) -> dict[str, Any] | None:
        """{"kind": class name, "arguments": {...}}, or None where an argument is no plain value (a function, ...)."""
        arguments = {name: plain(value) for name, value in self.made_with.items()}
        if any(value is NotImplemented for value in arguments.values()):
            return None
        return {"kind": type(self).__name__, "arguments": arguments}


def plain(value: Any) -> Any:
    """A value as JSON has it; NotImplemented where it has none."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # NumPy's numbers are Python's
    if isinstance(value, Recorded):
        recipe = value.recipe()
        return NotImplemented if recipe is None else recipe
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return NotImplemented if any(item is NotImplemented for item in items) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        entries = {key: plain(item) for key, item in value.items()}
        return NotImplemented if any(item is NotImplemented for item in entries.values()) else entries
    return NotImplemented


SCALARS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: hasattr(value, "__index__") and not isinstance(value, bool)),
    float: ("a number", lambda value: hasattr(value, "__float__") and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    str: ("a name", lambda value: isinstance(value, str)),
}
"""What a value must be that stands for one of Python's own types, and how it is told: NumPy's numbers are numbers."""


def _check_scalars(cls: type[Any], arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError where an argument that is a number, a flag or a name by its annotation is none."""
    scalars = _scalars(typing.cast(Hashable, cls))
    for name, value in arguments.items():
        if name in scalars and not any(_is_a(value, kind) for kind in scalars[name]):
            words = " or ".join(SCALARS[kind][0] for kind in scalars[name] if kind in SCALARS)
            raise ConfigError(f"{name.replace('_', ' ')} {value!r:.40} is not allowed for {cls.__name__}; use {words}")


@cache
def _scalars(cls: Hashable) -> dict[str, list[Any]]:
    """The arguments that are scalars of `SCALARS`, or one of several: which of these they may be."""
    found = {}
    for name, hint in typing.get_type_hints(cls.__init__).items():  # type: ignore[misc]
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        kinds = list(typing.get_args(hint)) if union else [hint]
        if all(kind in SCALARS or kind is types.NoneType for kind in kinds) and name != "return":
            found[name] = kinds
    return found


def misfit(kind: type[Any], arguments: Mapping[str, Any]) -> str | None:
    """The first argument whose value is not of the type that `kind` is annotated with; None where all are."""
    hints = typing.get_type_hints(kind.__init__)
    return next((name for name, value in arguments.items() if name in hints and not _is_a(value, hints[name])), None)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a plain value (a list as a tuple) is of an annotated type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, one) for one in inner)
    if origin in (tuple, Sequence):
        return isinstance(value, tuple) and all(_is_a(item, inner[0]) for item in value)
    if origin is not None:
        return False  # a function: no plain value is one
    return SCALARS[hint][1](value) if hint in SCALARS else isinstance(value, hint)
