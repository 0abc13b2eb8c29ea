"""Reads the pickles of the official CIFAR archives; what a hostile pickle asks for is refused, never executed.

Python's unpickler is not used: a small machine of this module takes the operations one by one. It knows dicts, lists,
short tuples, strings, numbers and uint8 arrays, so nothing can be called; and what it makes is bounded by what it has
read, for a few bytes can name the same thing again and again.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from sparcl.errors import DataError, one_line, out_of_memory

MAX_OPCODES = 10_000_000  # the official files have fewer than 600,000
MAX_VALUES = 4_000_000  # that come out, each counted as often as it is named; the official files hold 150,000
MAX_DEPTH = 8  # of what comes out; official: a dict of lists
MAX_TUPLE_DEPTH = 2  # an array's state holds its shape
COPIES = 4  # of the file's bytes that may be made of it


def load(content: bytes, name: str) -> Any:
    """Unpickle dicts, lists, strings, numbers and uint8 arrays; Python 2's strings become bytes.

    Args:
        content: the file.
        name: for messages.

    Raises:
        DataError: damaged or truncated; or it asks for anything else.
    """
    try:
        return _Machine(len(content)).run(content)
    except Exception as error:  # damaged pickles raise nearly anything
        if out_of_memory(error):
            raise
        detail = one_line(error)
        raise DataError(
            f"{name} is damaged, or no pickle of plain values and uint8 arrays, which alone are read ({detail})"
        ) from error


class _Mark:
    """Where a list of operands begins."""


class _Global:
    """One of the names that NumPy's arrays need; `call` is ours."""

    def __init__(self, call: Callable[[_Machine, tuple[Any, ...]], Any]) -> None:
        self.call = call


class _DType:
    """uint8, the only one there is."""


class _Array:
    """Shape and bytes, checked against each other before an array is made."""

    def __init__(self) -> None:
        self.value: np.ndarray[Any, np.dtype[np.uint8]] | None = None


class _Machine:
    """A stack, a memo, and what is left to be spent.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = COPIES * size
        self.values_left = MAX_VALUES

    def run(self, content: bytes) -> Any:
        """The value of a pickle."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count >= MAX_OPCODES:
                raise pickle.UnpicklingError(f"more than {MAX_OPCODES} operations")
            if opcode.name == "STOP":
                break
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _STRINGS:  # as Python 2 wrote them
                self.stack.append(argument.encode("latin1") if isinstance(argument, str) else argument)
            elif (act := _OPERATIONS.get(opcode.name)) is not None:
                act(self, argument)
            else:
                raise pickle.UnpicklingError(f"operation {opcode.name} is not allowed")
        (value,) = self.stack
        return self.plain(value, 0)

    def plain(self, value: Any, depth: int) -> Any:
        """What comes out: the arrays unwrapped, each value counted as often as it is named."""
        self.values_left -= 1
        if self.values_left < 0 or depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple(self.plain(item, depth + 1) for item in value)
        if isinstance(value, _Array):
            if value.value is None:
                raise pickle.UnpicklingError("an array without data")
            return value.value
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            return value
        raise pickle.UnpicklingError("a value that is not plain")

    def since_mark(self) -> list[Any]:
        """What was put on the stack after the last mark, which goes."""
        at = next(i for i in range(len(self.stack) - 1, -1, -1) if isinstance(self.stack[i], _Mark))
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def last(self, count: int) -> list[Any]:
        """The last operands, which go."""
        if len(self.stack) < count:
            raise pickle.UnpicklingError("an operation without its operands")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def made(self, data: bytes) -> bytes:
        """Bytes copied from what was read."""
        self.bytes_left -= len(data)
        if self.bytes_left < 0:
            raise pickle.UnpicklingError("the same bytes again and again")
        return data


def _tuple(machine: _Machine, items: list[Any]) -> None:
    made = tuple(items)
    if _depth(made, 0) > MAX_TUPLE_DEPTH:
        raise pickle.UnpicklingError(f"tuples nested more than {MAX_TUPLE_DEPTH} deep")
    machine.stack.append(made)


def _depth(value: Any, above: int) -> int:
    if not isinstance(value, tuple) or above > MAX_TUPLE_DEPTH:
        return above
    return max((_depth(item, above + 1) for item in value), default=above + 1)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise pickle.UnpicklingError("entries of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int):  # what else can be a key may take for ever to be looked up
            raise pickle.UnpicklingError("a key that is neither text nor a number")
        target[key] = value


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise pickle.UnpicklingError("items of something that is no list")
    target.extend(items)


def _global(machine: _Machine, module: object, name: object) -> None:
    found = _ALLOWED.get(f"{module} {name}") if isinstance(module, str) and isinstance(name, str) else None
    if found is None:
        raise pickle.UnpicklingError(f"global {module!s:.80}.{name!s:.80} is not allowed")
    machine.stack.append(_Global(found))


def _reduce(machine: _Machine, _: object) -> None:
    function, arguments = machine.last(2)
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a call of something that is not allowed")
    machine.stack.append(function.call(machine, arguments))


def _build(machine: _Machine, _: object) -> None:
    (state,) = machine.last(1)
    target = machine.stack[-1]
    if isinstance(target, _DType):
        return  # byte order and alignment: a byte has none
    if not isinstance(target, _Array):
        raise pickle.UnpicklingError("only an array can be given a state")
    if not (isinstance(state, tuple) and len(state) == 5):
        raise pickle.UnpicklingError("an array without shape and data")
    _version, shape, dtype, fortran, raw = state
    target.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _put(machine: _Machine, index: object) -> None:
    machine.memo[len(machine.memo) if index is None else int(str(index))] = machine.stack[-1]


def _dict(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    _set_items(machine, items)


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "PROTO": lambda _m, _a: None,
    "FRAME": lambda _m, _a: None,
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "POP": lambda m, _: m.last(1),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": lambda m, _: _dict(m),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: _tuple(m, m.since_mark()),
    "TUPLE1": lambda m, _: _tuple(m, m.last(1)),
    "TUPLE2": lambda m, _: _tuple(m, m.last(2)),
    "TUPLE3": lambda m, _: _tuple(m, m.last(3)),
    "APPEND": lambda m, _: _append(m, m.last(1)),
    "APPENDS": lambda m, _: _append(m, m.since_mark()),
    "SETITEM": lambda m, _: _set_items(m, m.last(2)),
    "SETITEMS": lambda m, _: _set_items(m, m.since_mark()),
    "GLOBAL": lambda m, a: _global(m, *a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: _global(m, *m.last(2)),
    "REDUCE": _reduce,
    "BUILD": _build,
    "MEMOIZE": lambda m, _: _put(m, None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.stack.append(m.memo[int(a)])),
}


def _dtype(_: _Machine, arguments: tuple[Any, ...]) -> _DType:
    code = arguments[0] if arguments else None
    if not isinstance(code, str | bytes) or code not in ("u1", b"u1", "|u1", b"|u1") or len(arguments) > 3:
        raise pickle.UnpicklingError(f"arrays of {code!r:.40} are not allowed, only uint8")
    return _DType()


def _array(raw: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    sizes = shape if isinstance(shape, tuple) and all(type(n) is int and 0 <= n <= 1 << 40 for n in shape) else ()
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _DType) or not 1 <= len(sizes) <= 8:
        raise pickle.UnpicklingError("an array whose parts are of a wrong kind")
    expected = 1
    for n in sizes:
        expected *= n
    if expected != len(raw):
        raise pickle.UnpicklingError(f"an array of shape {sizes} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype=np.uint8).reshape(sizes, order="F" if order == "F" else "C")


def _from_buffer(_: _Machine, arguments: tuple[Any, ...]) -> _Array:
    array = _Array()
    array.value = _array(*arguments)
    return array


def _encode(machine: _Machine, arguments: tuple[Any, ...]) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    text, encoding = (*arguments, "latin1")[:2]
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("an encoding other than latin1")
    return machine.made(text.encode("latin1"))


_ALLOWED: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "numpy ndarray": lambda _m, _a: _Array(),
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
}
for _package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _ALLOWED[f"{_package}.multiarray _reconstruct"] = lambda _m, _a: _Array()
    _ALLOWED[f"{_package}.numeric _frombuffer"] = _from_buffer
