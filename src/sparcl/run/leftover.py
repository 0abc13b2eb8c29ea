"""What a run that fails before it has saved anything leaves behind: nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparcl.checkpoint import Store
from sparcl.errors import CheckpointError
from sparcl.run.record import RunDirectory


@contextmanager
def nothing_left_behind(directory: RunDirectory, made: list[Path]) -> Iterator[None]:
    """Remove what this run made, its folders included, if it ends before there is anything worth keeping.

    A folder that was there, but empty, is empty again, so that the next try may have it.
    A full disk, or one that fails, is the user's to mend as well: one line, and the last checkpoint as it was.
    """
    fresh = not directory.used
    directory.seize()
    try:
        yield
    except BaseException as error:
        if not directory.ours:
            pass  # what lies there now is not this run's to remove
        elif made and Store(directory.checkpoints).empty:
            shutil.rmtree(directory.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run may have moved in beside it
                for folder in made[1:]:
                    folder.rmdir()
        elif fresh and Store(directory.checkpoints).empty:
            _clear(directory.path)
        if isinstance(error, OSError):
            raise CheckpointError(f"run directory {directory.path}: {error.strerror or error}") from error
        raise


def _clear(folder: Path) -> None:
    """Remove what is in a folder."""
    for entry in list(folder.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
