"""`compare.py HERE ARM`: two result.json of the same run, here and on an emulated ARM; fails beyond noise.

Both draw the same numbers and do the same work: executed FLOPs are equal unless DDR removed other samples, which
follows from rounding; a percent is let go. Accuracies are within `NOISE` points.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NOISE, WORK = 5.0, 0.01


def main() -> None:
    here, arm = (json.loads(Path(place).read_text()) for place in sys.argv[1:3])
    print("| | accuracy, Class-IL | Task-IL | FLOPs executed | samples removed | backend |")
    print("|---|---|---|---|---|---|")
    for name, one in (("x86-64", here), ("ARM, emulated", arm)):
        backend = one["backend"]["name"] if isinstance(one["backend"], dict) else one["backend"]
        print(
            f"| {name} | {one['class_il']:.2f} | {one['task_il']:.2f} | {one['flops']['executed']:,}"
            f" | {one['samples']['removed']} | {backend} |"
        )
    executed = [one["flops"]["executed"] for one in (here, arm)]
    if abs(executed[0] - executed[1]) > WORK * executed[0]:
        raise SystemExit("the executed FLOPs differ")
    for name in ("class_il", "task_il"):
        if abs(here[name] - arm[name]) > NOISE:
            raise SystemExit(f"{name}: {arm[name]:.2f} is not {here[name]:.2f} within {NOISE} points")


if __name__ == "__main__":
    main()
