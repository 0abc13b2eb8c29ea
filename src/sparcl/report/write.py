"""`sparcl report`: records in, a table or a page out."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparcl import outputs, regular
from sparcl.errors import ConfigError, unknown
from sparcl.report import neutral
from sparcl.report.records import Problem, load
from sparcl.report.tables import FORMATS, Group, as_csv, as_markdown, as_table, group, notes

WIDE = 220
"""Characters a line where there is no terminal: enough for every column."""


def write(places: Sequence[Path], form: str = "table", out: Path | None = None) -> None:
    """Compare the runs at `places` and write the comparison to `out` (default: standard output).

    Args:
        places: run directories, or folders that hold some.
        form: `table`, `markdown`, `csv` or `html`.
        out: the file to write; `html` needs one.

    Raises:
        ConfigError: an unknown format, no finished run at all, a file that cannot be written, or `html` without the
            packages that it needs.
    """
    if form not in FORMATS:
        raise ConfigError(unknown("format", form, FORMATS))
    if form == "html" and out is None:
        raise ConfigError("format html writes a file; name it with --out")
    if out is not None and form == "html" and outputs.is_page(out):
        _check_page(out)
    elif out is not None:
        outputs.check(out)
    records, problems = load(places)
    if not records:
        reasons = "; ".join(str(p) for p in problems[:3]) or "no run is named"
        raise ConfigError(f"there is no finished run to report: {reasons}")
    groups = group(records)
    if form == "html":
        from sparcl.report.page import page

        text = page(groups, problems)
    elif form == "csv":
        text = as_csv(groups)  # programs read it: what was left out goes to stderr
        _print_problems(problems)
    elif form == "markdown":
        text = as_markdown(groups) + _markdown_problems(problems)
    else:
        text = _for_terminal(groups, problems, to_file=out is not None)
    if out is None:
        sys.stdout.write(text)
        return
    write_text(out, text)


def _check_page(out: Path) -> None:
    """Refuse a link or a pipe where a run's own page is to be: somebody else put it there."""
    try:
        with contextlib.suppress(FileNotFoundError):
            regular.open_regular(out, ours=True).close()
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; move it away") from None


def check_place(out: Path) -> None:
    """Refuse a place for a file that is a folder, that lies below a file, or that is a run's own (ConfigError)."""
    outputs.check(out)
    above = next((folder for folder in out.parents if os.path.lexists(folder)), Path())
    reason = "Is a directory" if os.path.isdir(out) else None if os.path.isdir(above) else "Not a directory"
    if reason is not None:
        raise ConfigError(f"cannot write {out}: {reason}")


def write_text(out: Path, text: str) -> None:
    """Write a whole file, folders included, or leave what was there as it was; a name that is no text is escaped.

    Raises:
        ConfigError: it cannot be written.
    """
    content = neutral.decoded(text).encode("utf-8", "backslashreplace")
    place = Path(os.path.realpath(out))  # a link stays a link
    beside = place.with_name(f".sparcl-{os.getpid()}.tmp")
    try:
        if regular.is_odd(out):  # there is nothing to replace
            with regular.open_odd(out) as file:
                file.write(content)
            return
        with contextlib.suppress(FileExistsError):  # a file in place of a folder: what follows says so more clearly
            place.parent.mkdir(parents=True, exist_ok=True)
        with regular.open_new(beside) as file:
            file.write(content)
        if place.exists():
            shutil.copymode(place, beside)
        os.replace(beside, place)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _for_terminal(groups: Sequence[Group], problems: Sequence[Problem], *, to_file: bool) -> str:
    """The table as text: as wide as the terminal, or as wide as it needs to be in a file or a pipe."""
    width = None if sys.stdout.isatty() and not to_file else WIDE
    console = Console(width=width, color_system="auto" if width is None else None)
    with console.capture() as capture:
        console.print(as_table(groups))
        for note in notes(groups):
            console.print(neutral.terminal(note), markup=False, highlight=False)
        if problems:
            console.print(f"\nleft out ({len(problems)}):", highlight=False)
        for problem in problems:
            console.print(f"  {neutral.line(str(problem))}", markup=False, highlight=False, soft_wrap=True)
    return capture.get()


def _markdown_problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    return "\n".join(["", f"Left out ({len(problems)}):", "", *(f"- {neutral.markdown(str(p))}" for p in problems), ""])


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"left out: {neutral.line(str(problem))}", file=sys.stderr)
