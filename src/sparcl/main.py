"""What surrounds every command of `cli.py`: its output, what is refused in one line, the exit code.

Exit codes: 0 done, 2 bad arguments or data (exactly one line on stderr), 128 + N stopped by signal N: 130 Ctrl-C, 143
SIGTERM, 129 SIGHUP, 141 where nobody reads standard output any more (one line on stderr).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import typer

import sparcl
from sparcl import overlaid
from sparcl.cli import app
from sparcl.errors import DataWarning, OutputError, SparclError, Stopped, out_of_memory
from sparcl.report import neutral
from sparcl.run.console import Output
from sparcl.run.manual import refusal

# Typer carries Click inside since 0.2x: the common base of all that its parser refuses is found from here.
ParserError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Entry point: run the command; whatever is the user's to mend is one line on stderr and exit code 2."""
    from sparcl.run.progress import spell_out

    for name in ("stdout", "stderr"):  # closed by the caller: nobody wants to read, and the other is for other words
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    spell_out()  # a path may hold what the terminal's encoding does not
    output = Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    if not hasattr(sparcl, "Learner"):  # another's __init__.py, over ours
        said = overlaid.warning(Path(__file__).parents[1])
        sys.exit(
            _refuse(said or f"{sparcl.__file__} is not this project's; install sparcl-edge in a fresh environment")
        )
    warnings.showwarning = _tell(warnings.showwarning)
    code = _main(sys.argv[1:])
    try:
        output.flush()
    except OutputError as error:
        code = code or _refuse(str(error))  # one line, where the command has not said it
        output.give_up()
    sys.exit(_unheard() if output.deserted and not code else code)


def _tell(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows what data should be heard of as a line of its own, every other warning as before."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DataWarning):
            print(message)
        else:
            otherwise(message, category, *where, **more)

    return show


def _main(arguments: list[str]) -> int:
    try:
        code = app(arguments or ["--help"], prog_name="sparcl", standalone_mode=False)
    except SparclError as error:
        return _refuse(str(error))
    except ParserError as error:
        return _refuse(refusal(error))
    except Stopped as stop:
        return _unheard(stop.saved) if stop.signal == signal.SIGPIPE else 128 + stop.signal
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _refuse("there is not enough memory; use a smaller width, batch size or buffer size")
    return int(code or 0)


def _refuse(message: str, code: int = 2) -> int:
    with contextlib.suppress(OSError):  # stderr may be gone as well
        print("sparcl: " + neutral.line(message), file=sys.stderr, flush=True)
    return code


def _unheard(saved: str | None = None) -> int:
    """Nobody reads standard output any more."""
    kept = f"; {saved} is saved: go on with --resume" if saved else ""
    return _refuse(f"standard output was closed by its reader{kept}", 128 + signal.SIGPIPE)
