"""Imports point one way: cli → run → learner → {methods, sparsity, streams} → nn → kernels.

Nothing but run and cli imports cost and report; report reads saved records only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sparcl"

CORE = {"methods", "sparsity", "streams", "nn", "kernels"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "seeds": set(),
    "recorded": set(),
    "position": set(),
    "published": set(),
    "kernels": set(),
    "nn": {"kernels"},
    "streams": set(),
    "sparsity": {"nn", "kernels"},
    "methods": {"sparsity", "streams", "nn", "kernels"},
    "saving": CORE | {"checkpoint", "position"},
    "accuracy": CORE,
    "losses": {"position"},
    "refusals": CORE,
    "learner": CORE | {"accuracy", "losses", "refusals", "saving", "position", "checkpoint"},
    "cost": CORE | {"published"},
    "report": {"published"},
    "checkpoint": CORE,
    "config": CORE,
    "run": CORE | {"accuracy", "learner", "cost", "report", "checkpoint", "config", "sparcl"},
    "cli": CORE | {"accuracy", "learner", "cost", "report", "checkpoint", "config", "run", "sparcl"},
    "__main__": {"cli"},
}
"""What each part may import of the others, beside itself and the leaves; `sparcl` is the package itself."""

LEAVES = {"errors", "seeds", "recorded", "checkpoint.checks", "checkpoint.disk"}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it: `from sparcl.nn import build` is `sparcl.nn.build`."""
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):  # what only the type checker reads is no import
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    found = set()
    for name in imported(path):
        head, *rest = name.split(".")
        if head == "sparcl" and ".".join(rest[:2]) in LEAVES:
            found.add(".".join(rest[:2]))
        elif head == "sparcl":
            is_part = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").exists())
            found.add(rest[0] if is_part else "sparcl")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"say in MAY_IMPORT where {part} stands"
    wrong = parts_imported(path) - MAY_IMPORT[part] - {part} - LEAVES
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}"


def test_the_rule_itself_has_no_circle() -> None:
    left = {part: set(others) - {"sparcl"} for part, others in MAY_IMPORT.items()}
    while left:
        free = {part for part, others in left.items() if not others & left.keys()}
        assert free, f"a circle among {', '.join(sorted(left))}"
        left = {part: others for part, others in left.items() if part not in free}


def test_the_report_reads_saved_records_without_torch() -> None:
    for path in [*(PACKAGE / "report").rglob("*.py"), PACKAGE / "published.py"]:
        assert not [name for name in imported(path) if "torch" in name.split(".")], path


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    file = tmp_path / "made.py"
    file.write_text("import sparcl\nfrom sparcl import nn\ndef f():\n    from sparcl.learner import Learner\n")
    assert parts_imported(file) == {"sparcl", "nn", "learner"}
