"""Reads the pickles of the official CIFAR archives; what a hostile pickle asks for is refused, never executed.

Two lines of defence: the opcodes are scanned first, which bounds what the unpickler may allocate; and the globals that
NumPy's arrays need are replaced by stand-ins of this module, so that not even NumPy's own constructors are called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from sparcl.errors import DataError, one_line

MAX_OPCODES = 10_000_000  # the official files have fewer than 600,000
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"}


def load(content: bytes, name: str) -> Any:
    """Unpickle dicts, lists, strings, numbers and uint8 arrays; Python 2's strings become bytes.

    Args:
        content: the file.
        name: for messages.

    Raises:
        DataError: damaged or truncated; or it asks for anything else.
    """
    try:
        _scan(content)
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return _plain(value)
    except Exception as error:  # damaged pickles raise nearly anything
        detail = one_line(error)
        raise DataError(
            f"{name} is damaged, or no pickle of plain values and uint8 arrays, which alone are read ({detail})"
        ) from error


def _scan(content: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count >= MAX_OPCODES:
            raise pickle.UnpicklingError(f"more than {MAX_OPCODES} operations")
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(f"operation {opcode.name} is not allowed")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError("a memo index that no pickler writes")  # would allocate that many entries


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"global {module}.{name} is not allowed")
        return _ALLOWED[module, name]


class _StandIn:
    """A callable in place of a global; without attributes, so that a pickle cannot change it for the next one."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a global cannot be given a state")


class _DType:
    """uint8, the only one there is."""

    def __init__(self, code: object, *flags: object) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1") or len(flags) > 2:
            raise pickle.UnpicklingError(f"arrays of {code!r} are not allowed, only uint8")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment: a byte has none


class _Array:
    """Shape and bytes, checked against each other before an array is made."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array without shape and data")
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    sizes = shape if isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) else ()
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _DType) or not 1 <= len(sizes) <= 8:
        raise pickle.UnpicklingError("an array whose parts are of a wrong kind")
    expected = 1
    for n in sizes:
        expected *= n
    if expected != len(raw):
        raise pickle.UnpicklingError(f"an array of shape {sizes} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype=np.uint8).reshape(sizes, order="F" if order == "F" else "C")


def _from_buffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.value = _array(raw, dtype, shape, order)
    return array


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


def _plain(value: Any) -> Any:
    """Unwrap the arrays of a dict."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without data")
        return value.value
    return value


_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _StandIn(_Array),
    ("numpy", "dtype"): _StandIn(_DType),
    ("_codecs", "encode"): _StandIn(_encode),
}
for _package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _StandIn(_Array)
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _StandIn(_from_buffer)
