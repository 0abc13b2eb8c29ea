"""What a user names as `package.module:name`: a model, method, stream, ... of their own, from the command line.

The current directory is searched first, as `python -m` does it, then what is installed. The name comes from an option
or a configuration, never from a checkpoint, and a module that lies in a run directory is not imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparcl.errors import ConfigError, SparclError, one_line, out_of_memory

FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
RUN_FILES = ("config.toml", "events.jsonl")
"""By these a run directory is known."""


def is_own(name: str | None) -> bool:
    """Whether a name is one of the user's own, not of a registry."""
    return name is not None and ":" in name


def check_form(what: str, name: str) -> None:
    """Raise ConfigError unless it is `package.module:name`; nothing is imported."""
    if not FORM.fullmatch(name):
        raise ConfigError(f"{what} {name!r:.80} is not allowed; one of your own is named package.module:name")


def find(what: str, name: str) -> Any:
    """The object that `package.module:name` names.

    Args:
        what: for messages: "model", "method", ...

    Raises:
        ConfigError: not of this form, no such module or name, an import that fails, or a module in a run directory.
    """
    check_form(what, name)
    module_name, _, path = name.partition(":")
    _check_place(what, name, module_name)
    try:
        found: Any = importlib.import_module(module_name)
    except SparclError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise _no_module(what, name, str(error.name)) from None
        raise ConfigError(f"{what} {name}: the import of {module_name} fails: {told(error)}") from error
    module = found
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what} {name}: {module_name} has no {path}{_has(module)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{what} {name} is a {type(found).__name__}: a class or a function is needed")
    return found


def kind(what: str, name: str, base: type[Any]) -> type[Any]:
    """The class that a name names, which must be a subclass of `base` with a `name` of its own (ConfigError)."""
    found = find(what, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{what} {name} is not allowed; a subclass of {base.__module__}.{base.__name__} is needed")
    if not isinstance(getattr(found, "name", None), str):
        raise ConfigError(f'{what} {name} has no name: its class needs a line name = "..."')
    return found


def make(
    what: str,
    name: str,
    *arguments: Any,
    given: Mapping[str, Any] | None = None,
    usual: Mapping[str, Any] | None = None,
) -> Any:
    """What the callable of that name makes.

    Args:
        arguments: by position.
        given: what the user has asked for: refused where the callable does not take it.
        usual: what is passed where the callable takes it.

    Raises:
        ConfigError: as `find`; an argument that it does not take; or it raises.
    """
    called = find(what, name)
    given, usual = given or {}, usual or {}
    for argument in given:
        if not takes(called, argument):
            raise ConfigError(f"{what} {name} takes no {argument}: leave it out")
    passed = {**{k: v for k, v in usual.items() if takes(called, k)}, **given}
    return call(f"{what} {name}", called, *arguments, **passed)


def call(label: str, called: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the user's callable returns; what it raises, but for our own errors, becomes one line (ConfigError)."""
    try:
        return called(*arguments, **named)
    except SparclError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        passed = f" (called with {', '.join(named)})" if named else ""
        raise ConfigError(f"{label} fails{passed}: {told(error)}") from error


def takes(called: Callable[..., Any], argument: str) -> bool:
    """Whether a callable takes an argument of that name, by its signature."""
    parameters = _parameters(called)
    if argument in parameters:
        return parameters[argument].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def arguments_of(called: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a callable takes by name."""
    return [name for name in _parameters(called) if takes(called, name)]


def numbers(what: str, called: Callable[..., Any], options: Mapping[str, float]) -> dict[str, Any]:
    """NAME=NUMBER options as a callable is annotated: whole numbers for `int`, 0 or 1 for `bool`.

    Raises:
        ConfigError: a number that is not whole, or not 0 or 1.
    """
    made: dict[str, Any] = {}
    for name, value in options.items():
        parameter = _parameters(called).get(name)
        hint = getattr(parameter, "annotation", None)
        if hint in (bool, "bool"):
            if value not in (0, 1):
                raise ConfigError(f"{what} option {name} {value:g} is not allowed; use 0 or 1")
            made[name] = bool(value)
        elif hint in (int, "int"):
            if value != int(value):
                raise ConfigError(f"{what} option {name} {value:g} is not allowed; use a whole number")
            made[name] = int(value)
        else:
            made[name] = value
    return made


def told(error: BaseException) -> str:
    """An error of the user's code in words: its kind, and what it says."""
    said = one_line(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"


def _parameters(called: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        own = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
        parameters = dict(inspect.signature(own).parameters)
    except (TypeError, ValueError):  # one written in C
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    if isinstance(called, type):
        parameters.pop(next(iter(parameters), ""), None)  # self
    return parameters


def _check_place(what: str, name: str, module: str) -> None:
    """Make the current directory importable, and refuse a module that is not there or lies in a run directory."""
    here, top = os.getcwd(), module.partition(".")[0]
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made otherwise, as __main__
        spec = None
    if spec is None:
        raise _no_module(what, name, top)
    for place in filter(None, [spec.origin, *(spec.submodule_search_locations or ())]):
        for folder in Path(place).resolve().parents if os.path.exists(place) else ():
            if all((folder / file).is_file() for file in RUN_FILES):
                raise ConfigError(
                    f"{what} {name}: {top} lies in the run directory {folder}, from which nothing is executed: move it"
                )


def _no_module(what: str, name: str, module: str) -> ConfigError:
    return ConfigError(
        f"{what} {name}: there is no module {module}, neither in the current directory ({os.getcwd()}) nor installed"
    )


def _has(module: Any) -> str:
    """What a module has that could have been meant."""
    own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
    return f"; it has: {', '.join(own[:10])}" if own else ""
