"""Imports point one way: main → cli → run → learner → {methods, sparsity, streams} → nn → kernels.

Nothing but run and cli imports cost and report; report reads saved records only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sparcl"

CORE = {"methods", "sparsity", "streams", "nn", "kernels"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "named": set(),
    "folders": set(),
    "outputs": set(),
    "overlaid": set(),
    "regular": set(),
    "seeds": set(),
    "starting": set(),
    "whole": set(),
    "recorded": set(),
    "scenarios": set(),
    "published": set(),
    "kernels": set(),
    "nn": {"kernels"},
    "streams": set(),
    "sparsity": {"nn", "kernels"},
    "methods": {"sparsity", "streams", "nn", "kernels"},
    "learner": CORE | {"checkpoint"},
    "cost": CORE | {"published"},
    "report": {"published"},
    "checkpoint": CORE,
    "run": CORE | {"learner", "cost", "report", "checkpoint", "sparcl"},
    "cli": CORE | {"learner", "cost", "report", "checkpoint", "run", "sparcl"},
    "main": {"cli", "report", "run", "sparcl"},
    "__main__": {"main"},
}
"""What each part may import of the others, beside itself and the leaves; `sparcl` is the package itself."""

LEAVES = {
    *("errors", "folders", "named", "outputs", "overlaid", "recorded", "regular", "scenarios", "seeds"),
    *("starting", "whole"),
    *("checkpoint.checks", "checkpoint.disk"),
}

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


LEARNER = (
    "position",
    "loss_watch",
    "chance",
    "budget",
    "average",
    "schedule",
    "undo",
    "classes",
    "trained",
    "backend",
    "refusals",
    "optimizer",
    "alone",
    "micro",
    "frozen",
    "interrupts",
    "latents",
    "accuracy",
    "prediction",
    "apart",
    "asked",
    "saving",
    "making",
    "telling",
    "assembly",
    "training",
    "observing",
    "learner",
    "online",
    "__init__",
)
"""The files of `learner`, each of which may import those before it."""


def test_the_files_of_the_learner_import_one_way() -> None:
    folder = PACKAGE / "learner"
    assert {path.stem for path in folder.glob("*.py")} == set(LEARNER), "say in LEARNER where a new file stands"
    for i, name in enumerate(LEARNER):
        ours = {n.split(".")[2] for n in imported(folder / f"{name}.py") if n.startswith("sparcl.learner.")}
        assert ours <= set(LEARNER[:i]), f"{name} imports {', '.join(sorted(ours - set(LEARNER[:i])))}"


INCLUDES = {
    "kernels": {"kernels"},
    "engine": {"kernels", "engine"},
    "python": {"kernels", "engine", "python"},
    "device": {"kernels", "engine", "device"},
}
"""What the folders of csrc may include of each other; Python's own only in `python`."""


@pytest.mark.parametrize("part", INCLUDES)
def test_the_engine_includes_one_way(part: str) -> None:
    for path in sorted((PACKAGE.parents[1] / "csrc" / part).iterdir()):
        text = path.read_text()
        wrong = set(re.findall(r'#include "(\w+)/', text)) - INCLUDES[part]
        assert not wrong, f"{part}/{path.name} includes {', '.join(sorted(wrong))}"
        assert part == "python" or not re.search(r"#include <(nanobind|Python\.h|torch)", text), path


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
