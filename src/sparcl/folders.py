"""Folders: one that a user names, and where the package keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

from sparcl.errors import ConfigError


def folder_at(path: object, what: str = "folder") -> Path:
    """The path of a folder; ConfigError where it is none."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise ConfigError(f"{what} {path!r:.40} is not allowed; use the path of a folder")
    return Path(path)


def cache_folder() -> Path:
    """`$SPARCL_CACHE`, else `sparcl` in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`).

    Raises:
        RuntimeError: neither is set, and the user has no home.
    """
    if chosen := os.environ.get("SPARCL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sparcl"
