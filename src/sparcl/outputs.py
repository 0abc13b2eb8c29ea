"""A file that the user names to be written: no run's own, and not the one that is read for it."""

from __future__ import annotations

import os
from pathlib import Path

from sparcl.errors import ConfigError

PAGE = "report.html"
OF_RUN = (
    *("config.toml", "events.jsonl", "result.json", "model.safetensors", "answers.safetensors", "samples.json"),
    *("README.md", "metrics.csv", ".lock", PAGE),
)
"""Files that a run leaves in its directory."""

FOLDERS_OF_RUN = ("checkpoint", "tensorboard", "wandb")


def run_of(out: Path) -> Path | None:
    """The run directory that a file, or what its link names, is a part of; None: it is no run's own."""
    place = Path(os.path.realpath(out))
    if place.name in OF_RUN and _is_run(place.parent):
        return place.parent
    return next((f.parent for f in place.parents if f.name in FOLDERS_OF_RUN and _is_run(f.parent)), None)


def is_page(out: Path) -> bool:
    """Whether this is the name of a run's own page, which is drawn anew when that is asked for."""
    return out.name == PAGE and _is_run(out.parent)


def check(out: Path, *sources: Path) -> None:
    """Refuse to write a run's own file, or over one of the `sources` that are read for it (ConfigError)."""
    if (run := run_of(out)) is not None:
        raise ConfigError(f"{out} is a file of the run in {run}, which would lose it: name another file")
    for source in sources:
        if os.path.isfile(source) and os.path.realpath(source) == os.path.realpath(out):
            raise ConfigError(f"{out} is the file that is read: name another one to write")


def _is_run(folder: Path) -> bool:
    """Whether a run has begun there: it writes both files at once, and finishes with the third."""
    there = [os.path.lexists(folder / name) for name in OF_RUN[:3]]
    return there[0] and any(there[1:])
