"""Where the package keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SPARCL_CACHE`, else `sparcl` in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`).

    Raises:
        RuntimeError: neither is set, and the user has no home.
    """
    if chosen := os.environ.get("SPARCL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sparcl"
