"""What the README and the pages of docs/ hold: blocks of code, commands, links and the anchors they may point to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The commands of its shell blocks and of `sparcl ...` within its lines, in words."""
    text = page.read_text("utf-8")
    lines = [part for block in blocks(page, "sh") for line in block.splitlines() for part in line.split(" && ")]
    inline = re.findall(r"`((?:sparcl|make|python) [^`]+)`", prose(text).replace("\n", " "))
    return [words for line in [*lines, *inline] if (words := shlex.split(line, comments=True))]


def links(page: Path) -> list[str]:
    """Targets of its links that are not addresses on the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page.read_text("utf-8"))))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub names them, and of what the API reference lists."""
    text = prose(page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def prose(text: str) -> str:
    """Without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
