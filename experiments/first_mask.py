"""Random or largest |w|? Records of first-mask.toml, Welch's t test: `python experiments/first_mask.py`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

from student import welch

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
        means = [statistics.mean(values) for values in both]
        first, second = (statistics.variance(values) / len(values) for values in both)
        p = welch(means[0] - means[1], (first, second), (len(both[0]), len(both[1])))
        said = (
            f"{name} {statistics.mean(v):.1f} ± {statistics.stdev(v):.1f} ({len(v)})" for name, v in by_mask.items()
        )
        print(f"{row[0]}, {row[1]} epochs, {row[2]}: {', '.join(said)}; {means[0] - means[1]:+.1f}, p = {p:.3f}")
    print(*problems, sep="\n", end="")


if __name__ == "__main__":
    main()
