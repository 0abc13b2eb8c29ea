"""Is a wheel for 64-bit ARM what its name says? Needs the standard library only.

`python check_wheel.py WHEEL` looks at its compiled part: processor, suffix, and the versions of the C and C++ libraries
that it asks for. Run by a Python for that processor, emulated or not, it also imports the part and computes a small
convolution. The part wants PyTorch's tensors; a few lines stand for PyTorch: DLPack's C exchange interface in ctypes.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import tempfile
from array import array
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

AARCH64 = 183  # of an ELF file's header
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0)}
"""What a system that takes the tag manylinux_2_35 has."""


FLOAT, INT = 2, 0  # DLPack's codes of a type


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


LOOK = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
IMPORT = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(Managed), ctypes.POINTER(ctypes.c_void_p))


class Exchange(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("export", ctypes.c_void_p),
        ("import_owned", IMPORT),
        ("look", LOOK),
        ("stream", ctypes.c_void_p),
    ]


class Tensor:
    """An array with a shape and strides, or what the compiled part has made."""

    def __init__(self, content: array[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.content = content
        self.sizes = [(ctypes.c_int64 * len(s))(*s) for s in (shape, strides)]
        shape_of, strides_of = (ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in self.sizes)
        code = INT if content.typecode == "i" else FLOAT
        self.seen = DLTensor(content.buffer_info()[0], (1, 0), len(shape), code, 32, 1, shape_of, strides_of, 0)

    def is_neg(self) -> bool:
        return False

    def floats(self) -> list[float]:
        count = 1
        for axis in range(self.seen.axes):
            count *= self.seen.shape[axis]
        return list(ctypes.cast(self.seen.data, ctypes.POINTER(ctypes.c_float))[:count])


@LOOK
def look(tensor: Tensor, out: Any) -> int:
    out[0] = tensor.seen
    return 0


@IMPORT
def import_owned(managed: Any, out: Any) -> int:
    tensor = Tensor.__new__(Tensor)
    tensor.seen = managed[0].tensor  # never given back: the process ends soon
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(tensor))
    out[0] = id(tensor)
    return 0


EXCHANGE = Exchange((1, 3), None, None, None, import_owned, look, None)


def stand_in_for_torch() -> None:
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    Tensor.__dlpack_c_exchange_api__ = new_capsule(ctypes.addressof(EXCHANGE), b"dlpack_exchange_api", None)  # type: ignore[attr-defined]
    sys.modules["torch"] = ModuleType("torch")
    sys.modules["torch"].Tensor = Tensor  # type: ignore[attr-defined]


def compiled_part(wheel: Path) -> tuple[str, bytes]:
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("sparcl/kernels/_native")]
        assert len(names) == 1, f"one compiled part is expected, not {names}"
        return names[0], archive.read(names[0])


def check_binary(wheel: Path, name: str, content: bytes) -> None:
    version, abi, system = wheel.stem.split("-")[-3:]
    assert system == "manylinux_2_35_aarch64", f"tag {system}"
    assert abi == version
    suffixes = {f"_native.cpython-{version[2:]}-aarch64-linux-gnu.so", "_native.abi3.so"}
    assert Path(name).name in suffixes, f"{name} is not one of {suffixes}"
    assert content[:5] == b"\x7fELF\x02", f"{name} is no 64-bit ELF file"
    assert int.from_bytes(content[18:20], "little") == AARCH64, f"{name} is for another processor"
    asked = re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)(?=\0)", content)
    assert asked, f"{name} asks for no library"
    for library, number in {(library.decode(), number.decode()) for library, number in asked}:
        assert tuple(map(int, number.split("."))) <= NEWEST[library], f"{name} needs {library} {number}"


def check_convolution(native: Any, isa: str) -> None:
    """3×3, two channels in, one out, four nonzeros, 2×3 positions, five samples; batch-last."""
    native.select_isa(isa)
    rows, columns, batch = 2, 3, 5
    index, values = array("i", [0, 4, 13, 17]), array("f", [2.0, -1.0, 0.5, 3.0])
    x = array("f", (((7 * i) % 11) - 5 for i in range(2 * rows * columns * batch)))
    plan = native.ConvPlan(Tensor(index, (4,), (1,)), (1, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    shape, strides = (batch, 2, rows, columns), (1, rows * columns * batch, columns * batch, batch)
    out = plan.forward(Tensor(x, shape, strides), Tensor(values, (4,), (1,)), None, 2).floats()
    for row in range(rows):
        for column in range(columns):
            for n in range(batch):
                expected = 0.0
                for position, value in zip(index, values, strict=True):
                    channel, tap = divmod(position, 9)
                    r, c = row + tap // 3 - 1, column + tap % 3 - 1
                    if 0 <= r < rows and 0 <= c < columns:
                        expected += value * x[((channel * rows + r) * columns + c) * batch + n]
                got = out[(row * columns + column) * batch + n]
                assert got == expected, f"{isa}: {got} where {expected} is right"  # small numbers: exact


def run_part(name: str, content: bytes) -> str:
    stand_in_for_torch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        loader = ExtensionFileLoader("_native", str(path))
        spec = spec_from_loader("_native", loader)
        assert spec
        native = module_from_spec(spec)
        loader.exec_module(native)
        isas = str(native.available_isas()).split(", ")
    for isa in isas:
        check_convolution(native, isa)
    return ", ".join(isas)


def main() -> None:
    wheel = Path(sys.argv[1])
    name, content = compiled_part(wheel)
    check_binary(wheel, name, content)
    print(f"{wheel.name}: built for aarch64, within the libraries of its tag")
    if platform.machine() == "aarch64":
        print(f"imported by Python {platform.python_version()}, a convolution is right on {run_part(name, content)}")


if __name__ == "__main__":
    main()
