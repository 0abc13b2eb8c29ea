"""Whether another project's package of the same name lies over or under this one: `sparcl` is what several import."""

from __future__ import annotations

from pathlib import Path

DISTRIBUTION = "sparcl-edge"


def others(site: Path) -> list[str]:
    """Distributions beside ours that install a package `sparcl` into the folder `site`, by their records there.

    Records are searched as bytes, not parsed: this runs at every import.
    """
    found = []
    for record in sorted(site.glob("*.dist-info/RECORD")):
        name = record.parent.name.split("-")[0].replace("_", "-")
        if name != DISTRIBUTION and b"\nsparcl/__init__.py," in b"\n" + record.read_bytes():
            found.append(name)
    return found


def warning(site: Path) -> str:
    """One line that names the other distribution and the remedy; empty where there is none."""
    names = " and ".join(others(site))
    if not names:
        return ""
    return (
        f"another distribution, {names}, installs a package sparcl where {DISTRIBUTION} has its own, one over "
        f"the other: pip uninstall {names.replace(' and ', ' ')} {DISTRIBUTION}, then install {DISTRIBUTION} alone"
    )
