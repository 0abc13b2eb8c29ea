"""Where a command speaks: text as it is, made harmless for a terminal, and no error where nobody listens any more."""

from __future__ import annotations

import errno
import os
from typing import Any, TextIO

from rich.console import Console

from sparcl.errors import OutputError
from sparcl.report import neutral


class Output:
    """A text file that falls silent once its reader is gone (`| head -1`, a closed terminal): then `deserted` is true.

    On a full disk, say, it raises OutputError.

    Attributes other than these are the file's own.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.deserted = False

    def write(self, text: str) -> int:
        try:
            return self.file.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # a closed pipe, a terminal that hung up
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None
        self.deserted = True
        self.give_up()

    def give_up(self) -> None:
        """What the file still holds, and what comes, goes nowhere: it fails no more while Python ends."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # not a file of the system's
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class CommandConsole(Console):
    """A console that prints text as it is: a path may hold what rich takes for markup, and a terminal for orders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def print(self, *objects: Any, **named: Any) -> None:
        super().print(*(neutral.terminal(o) if isinstance(o, str) else o for o in objects), **named)


def deserted(console: Console) -> bool:
    """Whether nobody reads a console any more."""
    return isinstance(console.file, Output) and console.file.deserted
