"""Nested state as JSON and named tensors, and back.

A state is nested dicts (string keys) and lists of tensors, numbers, strings, booleans and None. In the JSON a tensor is
`{"$tensor": "its/path"}`, and a number that JSON does not have is `{"$float": "nan"}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sparcl.errors import CheckpointError, one_line

State = dict[str, Any]

MAX_DEPTH = 32
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def flatten(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """A state as (JSON value, tensors by path).

    Raises:
        CheckpointError: something in it is neither a tensor nor a plain value.
    """
    tensors: dict[str, Tensor] = {}
    return _flatten(dict(state), "", tensors), tensors


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise CheckpointError(f"state {path} is a {value.layout} tensor; only dense tensors can be saved")
        tensors[path] = value.detach().cpu().contiguous()
        return {"$tensor": path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or "/" in key or key.startswith("$"):
                raise CheckpointError(
                    f"state {path or '(top)'} has the key {key!r}; allowed are strings without / and $"
                )
        return {key: _flatten(item, f"{path}/{key}" if path else key, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"state {path} is a {type(value).__name__}; only tensors and plain values can be saved")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> State:
    """The state that `flatten` took apart.

    Raises:
        CheckpointError: tensors missing or left over, or nested too deeply.
    """
    left = dict(tensors)
    state = _unflatten(value, "", left, 0)
    if left:
        raise CheckpointError(f"the state does not mention the tensor {min(left)!r}")
    if not isinstance(state, dict):
        raise CheckpointError("the state is not a JSON object")
    return state


def _unflatten(value: Any, path: str, tensors: dict[str, Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CheckpointError(f"the state is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_unflatten(item, f"{path}/{i}", tensors, depth + 1) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        if value["$tensor"] != path or len(value) != 1 or path not in tensors:
            raise CheckpointError(f"state {path} names a tensor that is not there")
        return tensors.pop(path)
    if "$float" in value:
        if len(value) != 1 or value["$float"] not in _FLOATS:
            raise CheckpointError(f"state {path} is no number")
        return _FLOATS[value["$float"]]
    return {key: _unflatten(item, f"{path}/{key}" if path else key, tensors, depth + 1) for key, item in value.items()}


def to_json(value: Any) -> bytes:
    """JSON with keys in order, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1).encode()


def from_json(data: bytes, what: str) -> Any:
    """A JSON value; strict where JSON is: no key twice, no NaN.

    Raises:
        CheckpointError: it is not JSON.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({one_line(error)})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Where two states differ first (bit for bit, types included), as a path; None where they are equal."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            where = f"{path}/{key}" if path else str(key)
            if key not in one or key not in other:
                return where
            if (found := difference(one[key], other[key], where)) is not None:
                return found
        return None
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))
    else:
        same = type(one) is type(other) and (one == other or (one != one and other != other))
    return None if same else path or "(top)"


def buffer(tensor: Tensor) -> memoryview:
    """A tensor's bytes as the file functions and hashes of the standard library take them."""
    return memoryview(cast(Any, bits(tensor).numpy()))


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bytes, uint8 [n], on the CPU: equal bytes are equal bits, NaN and -0.0 included."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
