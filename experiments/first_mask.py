"""Random or largest |w|? Records of first-mask.toml, Welch's t test: `python experiments/first_mask.py`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

from student import compared

from sparcl.report import load

RECORDS = Path(__file__).parent / "results" / "first-mask"
Row = tuple[str, int, str]
"""Stream, epochs, sparsifier."""


def main() -> None:
    records, problems = load([RECORDS])
    found: dict[Row, dict[str, list[float]]] = defaultdict(lambda: {"random": [], "magnitude": []})
    for record in records:
        config = record.config
        row = (config["stream"], config["epochs"], config["sparsifier"])
        found[row][config["first_mask"]].append(float(record.result["class_il"]))
    for row, by_mask in sorted(found.items()):
        both = list(by_mask.values())
        if min(map(len, both)) < 2:
            continue
        difference, p = compared(*both)
        said = (
            f"{name} {statistics.mean(v):.1f} ± {statistics.stdev(v):.1f} ({len(v)})" for name, v in by_mask.items()
        )
        print(f"{row[0]}, {row[1]} epochs, {row[2]}: {', '.join(said)}; {difference:+.1f}, p = {p:.3f}")
    print(*problems, sep="\n", end="")


if __name__ == "__main__":
    main()
