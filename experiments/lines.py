"""Records of one line of JSON each, in a file that a stopped script goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Those that are there; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """One more."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
