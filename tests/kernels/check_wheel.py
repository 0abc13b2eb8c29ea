"""Is a wheel for 64-bit ARM what its name says? Needs the standard library only.

`python check_wheel.py WHEEL` looks at its compiled part: processor, suffix, and the versions of the C and C++ libraries
that it asks for. Run by a Python for that processor, emulated or not, it also imports the part and computes a small
convolution.
"""

from __future__ import annotations

import platform
import re
import sys
import tempfile
from array import array
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any
from zipfile import ZipFile

AARCH64 = 183  # of an ELF file's header
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0)}
"""What a system that takes the tag manylinux_2_35 has."""


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
    out = array("f", bytes(4 * rows * columns * batch))
    plan = native.ConvPlan(index, (1, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    shaped = memoryview(x).cast("B").cast("f", (2, rows, columns, batch))
    plan.forward(values, None, shaped, memoryview(out).cast("B").cast("f", (1, rows, columns, batch)), 2)
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
