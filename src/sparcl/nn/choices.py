"""What `auto` measured on this machine, kept in the user's cache: a layer of the same shape is not timed again.

Only ever a gain of time. What is damaged, of another machine or nobody's choice is passed over, what cannot be written
stays unwritten, and of two processes that write at once one may lose its entries, which are then measured again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from sparcl import kernels, regular
from sparcl.folders import cache_folder

CHOICES = ("native", "dense")

FORMAT = 1  # raise it when what is measured, or how it is named, changes
MOST = 4096
"""Entries of the file; the oldest leave."""
LIMIT = 4 << 20
"""Bytes of a file that is read."""


def file() -> Path:
    """Where the choices are kept.

    Raises:
        RuntimeError: the user has no home.
    """
    return cache_folder() / "layers.json"


def machine() -> str:
    """All that a choice depends on beside the layer: processor, instruction set, threads, PyTorch, the engine."""
    engine = ""
    with contextlib.suppress(OSError, TypeError):
        status = os.stat(kernels._native.__file__)
        engine = f"{status.st_size}-{status.st_mtime_ns}"
    parts = (_processor(), os.cpu_count(), kernels.isa(), torch.get_num_threads(), torch.__version__, engine)
    return ", ".join(map(str, parts))


@functools.cache
def _processor() -> str:
    """The processor's name, else its family."""
    with contextlib.suppress(OSError, ValueError):
        for line in regular.read(Path("/proc/cpuinfo"), LIMIT).decode().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part"):
                return value.strip()
    return platform.processor() or platform.machine()


def known(layers: Mapping[str, str]) -> dict[str, str]:
    """The remembered choices, by the keys of `layers`, which says by key what the layer is."""
    here, kept = machine(), _read()
    found = {key: kept.get(f"{here}; {layer}") for key, layer in layers.items()}
    return {key: choice for key, choice in found.items() if choice in CHOICES}


def remember(layers: Mapping[str, str]) -> None:
    """Keep choices by what their layer is, beside those that are kept already."""
    here = machine()
    new = {f"{here}; {layer}": choice for layer, choice in layers.items()}
    kept = {layer: choice for layer, choice in _read().items() if layer not in new} | new
    newest = dict(list(kept.items())[-MOST:])
    text = json.dumps({"format": FORMAT, "choices": newest}, indent=1) + "\n"
    with contextlib.suppress(OSError, RuntimeError):  # no folder, no room, no home
        _replace(file(), text.encode())


def _read() -> dict[str, str]:
    """What the file holds; nothing where it holds none of it."""
    try:
        held = json.loads(regular.read(file(), LIMIT, ours=True))
        if held["format"] != FORMAT:
            return {}
        return {layer: choice for layer, choice in held["choices"].items() if choice in CHOICES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # RecursionError is the last, too
        return {}


def _replace(path: Path, data: bytes) -> None:
    """A whole file in the place of the old one, under a name of this process's own until it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
