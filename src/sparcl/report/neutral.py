"""Text of strangers made harmless where it comes out: in a terminal, a spreadsheet, Markdown.

Names of files, settings and machines come from records and archives that anyone may have written. What a place would
take for more than text (an escape sequence, a formula, a tag) is shown there, never obeyed.
"""

from __future__ import annotations

import re
from typing import Any

FORMULA = re.compile(r"\s*[=+\-@]")
"""How a cell begins that a spreadsheet would compute."""

MARKDOWN = re.compile(r"[\\`*_\[\]<>|~#$!]")
"""What Markdown, its tables, its HTML and its formulas are made of."""


UNDECODED = re.compile("[\udc80-\udcff]+")
"""Bytes of a name that Python did not decode: what is no UTF-8 and, in the locale C, all beyond ASCII."""


def decoded(text: str) -> str:
    """Text in which such bytes are the letters that they are in UTF-8; where they are none, `\\xff` and so on."""
    return UNDECODED.sub(lambda them: them[0].encode(errors="surrogateescape").decode(errors="backslashreplace"), text)


def terminal(text: str) -> str:
    """Text in which no character moves a cursor, colours, hides or turns round what follows: those are spelled out.

    Line breaks and tabs stay.
    """
    text = decoded(text)
    return text if text.isprintable() else "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    if character.isprintable() or character in "\n\t" or (character.isspace() and character > "\x9f"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def line(text: str) -> str:
    """As `terminal`, in one line."""
    return terminal(" ".join(text.split()))


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet shows and does not compute; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    shown = line(value)
    return f"'{shown}" if FORMULA.match(shown) else shown


def markdown(text: str) -> str:
    """Markdown that shows `text` in one line, as it is; also inside a table."""
    return MARKDOWN.sub(lambda found: {"<": "&lt;", ">": "&gt;"}.get(found[0], f"\\{found[0]}"), line(text))
