"""`sparcl info`: what is installed, what can be named, and what is missing here, with the command that installs it."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
from importlib import metadata
from typing import Any

import torch

import sparcl
from sparcl import kernels, methods, nn, streams
from sparcl.folders import cache_folder
from sparcl.overlaid import DISTRIBUTION
from sparcl.run.optimizers import OPTIMIZERS
from sparcl.sparsity import SPARSIFIERS, Sparsifier

FOR = {
    "images": "image files: folder, seq-tinyimg, predict",
    "download": "fetching data sets",
    "report": "report.html",
    "demo": "seq-digits",
    "sweep": "sparcl sweep --launcher slurm",
    "onnx": "sparcl export --format onnx",
    "tensorboard": "sparcl run --track tensorboard",
    "wandb": "sparcl run --track wandb",
}
"""What each extra of the package is for."""

NOT_FOR_USERS = ("all", "dev", "docs")


def about() -> dict[str, Any]:
    """All of it, as plain values: `versions`, `backends`, `streams`, `methods`, `sparsifiers`, `models`, `optional`."""
    missing = kernels.why_unavailable()
    others = [isa for isa in kernels.available_isas() if missing or isa != kernels.isa()]
    also = f"; SPARCL_ISA chooses {' or '.join(others)}" if others else ""
    return {
        "versions": {
            "sparcl": sparcl.__version__,
            "python": sys.version.split()[0],
            "torch": f"{torch.__version__}, {torch.get_num_threads()} thread(s)",
            **_cache(),
        },
        "backends": {
            "backend native": f"missing: {missing}" if missing else f"available ({kernels.isa()}{also})",
            "backend reference": "available",
            "device cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "missing: the CPU is used",
        },
        "streams": {name: _first(entry.open) for name, entry in streams.STREAMS.items()},
        "methods": {name: _first(sys.modules[kind.__module__]) for name, kind in methods.METHODS.items()},
        "sparsifiers": {
            name: _first(kind if kind is Sparsifier else sys.modules[kind.__module__])
            for name, kind in SPARSIFIERS.items()
        },
        "models": {name: _model(name) for name in nn.MODELS},
        "optimizers": {name: f"torch.optim.{kind.made.__name__}" for name, kind in OPTIMIZERS.items()},
        "your own": {"package.module:name": "in place of a name of any of these"},
        "optional": optional(),
    }


def _cache() -> dict[str, str]:
    """Where it is remembered which layers are faster dense, and decoded data is kept."""
    with contextlib.suppress(RuntimeError):  # nobody's home
        return {"cache": str(cache_folder())}
    return {}


def _first(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().split("\n")[0]


def _model(name: str) -> str:
    """That of the class which a name makes; its weights take no memory here."""
    with torch.device("meta"):
        return _first(type(nn.build(name, 10, (3, 32, 32))))


def optional() -> dict[str, str]:
    """By extra: the packages that are installed, or how to install those that are not, and what they are for."""
    found: dict[str, str] = {}
    for extra, packages in _extras().items():
        installed = {package: _version(package) for package in packages}
        missing = [package for package, version in installed.items() if version is None]
        told = ", ".join(f"{package} {version}" for package, version in installed.items() if version is not None)
        if missing:
            told = f"missing ({', '.join(missing)}): pip install '{DISTRIBUTION}[{extra}]'"
        found[extra] = f"{told}; for {FOR[extra]}" if extra in FOR else told
    return found


def _extras() -> dict[str, list[str]]:
    """What the package's own metadata names as optional; empty where it is not installed but only lies on the path."""
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in required:
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if package and extra and extra[1] not in NOT_FOR_USERS:
            found.setdefault(extra[1], []).append(package[0])
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_text(told: dict[str, Any], width: int | None) -> str:
    """For people: a line each, wrapped to `width` characters; None where a program may read them."""
    lines = _lines({**told["versions"], **told["backends"]}, width)  # what is asked for first needs no heading
    for section, rows in told.items():
        if rows and section not in ("versions", "backends"):
            lines += ["", section, *_lines(rows, width, "  ")]
    return "\n".join(lines) + "\n"


def _lines(rows: dict[str, str], width: int | None, before: str = "") -> list[str]:
    column = max(map(len, rows)) + 2
    lines = []
    for name, said in rows.items():
        head = before + name.ljust(column)
        if width is None or width < len(head) + 20:
            lines.append(head + said)
        else:
            indent = " " * len(head)
            lines += textwrap.wrap(said, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    return lines
