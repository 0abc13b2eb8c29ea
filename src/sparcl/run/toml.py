"""Values of a TOML file: read, checked against a dataclass's annotations, written."""

from __future__ import annotations

import json
import math
import os
import tomllib
from pathlib import Path
from typing import Any

from sparcl import regular
from sparcl.errors import ConfigError, one_line

MAX_TOML = 16 << 20
"""Bytes of a configuration."""


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: it is missing, unreadable or not TOML (one line, with the place).
    """
    try:
        return tomllib.loads(
            regular.read(path, MAX_TOML).decode("utf-8-sig")
        )  # an editor may have put a byte-order mark
    except FileNotFoundError:
        raise ConfigError(f"configuration {path} does not exist") from None
    except ValueError as error:  # TOML's own, of the encoding, of a number with thousands of digits
        raise ConfigError(f"configuration {path} is not valid TOML: {one_line(error)}") from None
    except OSError as error:
        inside = path / "config.toml"
        hint = f"; name {inside}" if os.path.isfile(inside) else ""
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}{hint}") from None
    except RecursionError as error:
        raise ConfigError(f"configuration {path} cannot be read: {one_line(error)}") from None


def tupled(value: Any) -> Any:
    return tuple(tupled(item) for item in value) if isinstance(value, list) else value


PLAIN_TYPES: dict[str, list[type]] = {
    "str": [str],
    "int": [int],
    "float": [float, int],
    "bool": [bool],
    "tuple": [list, tuple],
    "dict": [dict],
}


def check_type(source: str, key: str, annotation: str, value: object) -> None:
    allowed: list[type] = []
    for part in annotation.split("|"):
        kind = part.strip().split("[")[0]
        allowed += PLAIN_TYPES.get(kind, [])
    right = type(value) in allowed
    if right and isinstance(value, list | tuple) and "tuple[int" in annotation and "tuple[tuple" not in annotation:
        right = len(value) > 0 and all(type(number) is int for number in value)
    elif right and isinstance(value, list | tuple) and "tuple[int" in annotation:
        rows = [row if isinstance(row, list | tuple) else [None] for row in value]
        right = all(type(number) is int for row in rows for number in row)
    elif right and isinstance(value, list | tuple):
        right = all(isinstance(item, str) for item in value)
    if right and isinstance(value, dict):
        inner = (str,) if "str, str" in annotation else (int, float)
        right = all(isinstance(item, inner) and not isinstance(item, bool) for item in value.values())
    if not right:
        raise ConfigError(f"{source}: {key} must be {annotation.replace(' | None', '')}, not {value!r}"[:300])


def toml_value(value: object) -> str:
    """A TOML value (or bare key): JSON's strings, numbers and arrays are TOML's, but for a few floats."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
