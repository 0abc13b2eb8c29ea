"""Fetching official files that are missing, each with its published checksum."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparcl.errors import DataError

TIMEOUT_SECONDS = 10  # to connect, and between two packets


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its name here, where it is, and the MD5 that its publisher gives."""

    file: str
    url: str
    md5: str


def fetch(remotes: Sequence[Remote], folder: Path) -> list[Path]:
    """Download into `folder` what is not there yet; a file with a wrong checksum is not kept.

    Raises:
        DataError: no network, no pooch, a wrong checksum: the message says which file to put where.
    """
    names = ", ".join(r.file for r in remotes)
    pages = dict.fromkeys(r.url.removesuffix(r.file) for r in remotes)
    by_hand = f"put {names} into {folder} by hand (from {', '.join(pages)})"
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f'{names} not found in {folder}: {by_hand}, or pip install "sparcl-edge[download]" to fetch'
        ) from error
    pooch.get_logger().setLevel(logging.WARNING)  # the run's own progress is on the screen
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        download = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)
        return [
            Path(pooch.retrieve(r.url, f"md5:{r.md5}", fname=r.file, path=folder, downloader=download)) for r in remotes
        ]
    except Exception as error:  # of requests, of the file system, or a wrong checksum
        with contextlib.suppress(OSError):  # not empty: what has arrived is kept
            for path in created:
                path.rmdir()
        reason = "checksum differs" if isinstance(error, ValueError) else type(error).__name__
        raise DataError(f"{names} not found in {folder} and not fetched ({reason}): {by_hand}") from error
