"""What the library raises: one clear line that says what is allowed, never a traceback for the user of the command."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SparclError(Exception):
    """Base of every error that a user can cause or mend; the command line prints it and exits with code 2."""


class ConfigError(SparclError):
    """An option, a name or a combination that is not allowed."""


class DataError(SparclError):
    """Data that is missing, damaged, hostile or does not fit."""


class TrainingError(SparclError):
    """Training cannot go on: a loss, a weight or a statistic that is NaN or infinite."""


class Stopped(BaseException):
    """A signal asked the run to stop; not an error, and as KeyboardInterrupt it passes every `except Exception`.

    Attributes:
        signal: the command exits with 128 + it.
        saved: the checkpoint that holds everything up to there; None where there was nothing to save yet.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
        self.saved: str | None = None


class OutputError(SparclError):
    """Standard output cannot be written: a full disk, or a reader that has gone."""


class DataWarning(UserWarning):
    """Data that is read otherwise than one may think; the command line prints it as a line of its own."""


class CheckpointError(SparclError):
    """A checkpoint or a run directory that is missing, damaged, locked or does not fit."""


def unknown(what: str, name: object, allowed: Iterable[object]) -> str:
    """That a name is not one of those allowed, which are listed, and which of them may be meant."""
    names = [str(one) for one in allowed]
    near = nearest(str(name), names)
    meant = "" if near is None else f"; did you mean {near}?"
    return f"unknown {what} {name!r}; allowed: {', '.join(names)}{meant}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Of the names the one that is most like another; None where none is. DER++ is derpp, seq_digits seq-digits."""
    plain = {_plain(one): one for one in names}
    found = get_close_matches(_plain(name[:80]), plain, 1, 0.7)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace("+", "p")


def one_line(error: BaseException) -> str:
    """What another library says of an error, within one line: at most 120 characters, its kind if it is silent."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def shown(value: object, most: int = 40) -> str:
    """A value as a message shows it: within one line, at most so many characters."""
    return " ".join(repr(value).split())[:most]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch says so by a plain RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


LARGEST = 3.4028234663852886e38
"""Of the numbers that PyTorch computes with here: larger ones overflow float32."""
