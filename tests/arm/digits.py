"""seq-digits by Python, by sparcl-device here and by sparcl-device on an emulated ARM, from the same untrained file.

Prints a table in Markdown, and fails where the executed multiply-adds differ, where an accuracy is further from
Python's than `--noise` (masks drift apart in a whole run: 7 points were seen), or where, over three seeds or more, the
ARM's mean differs from Python's by more than chance (Student's t of the pairs, p < .01).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import device_equal  # noqa: E402  (a script beside others, found by the line above)

from sparcl.streams import seq_digits  # noqa: E402

SURE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", type=Path, required=True, help="sparcl-device for this machine")
    parser.add_argument("--arm", type=Path, required=True, help="a script that runs the ARM program emulated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=device_equal.EPOCHS)
    parser.add_argument("--methods", nargs="+", default=["er", "derpp"])
    parser.add_argument("--noise", type=float, default=10.0, help="points of accuracy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device_equal.EPOCHS = given.epochs
    stream, failed = seq_digits(), []
    print("| method | seed | accuracy, Python | device, x86-64 | device, ARM | multiply-adds, Python | x86-64 | ARM |")
    print("|---|---|---|---|---|---|---|---|")
    for method in given.methods:
        differences = []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                programs = (given.here, given.arm)
                here, arm = (device_equal.both(method, stream, seed, p, Path(folder)) for p in programs)
            python, accuracy = arm["accuracy"]
            work = (arm["executed"][0], here["executed"][1], arm["executed"][1])
            print(
                f"| {method} | {seed} | {python:.2f} | {here['accuracy'][1]:.2f} | {accuracy:.2f} | "
                + " | ".join(f"{w:,.0f}" for w in work)
                + " |",
                flush=True,
            )
            differences.append(accuracy - python)
            if len(set(work)) != 1:
                failed.append(f"{method}, seed {seed}: the multiply-adds differ")
            if abs(accuracy - python) > given.noise:
                failed.append(f"{method}, seed {seed}: {accuracy:.2f} is not {python:.2f} within {given.noise} points")
        if len(differences) > 1:
            mean, spread, p = device_equal.paired(differences)
            print(f"\n{method}: ARM less Python {mean:+.2f} ± {spread:.2f} points, p = {p:.2f}\n", flush=True)
            if len(differences) > 2 and p < SURE:
                failed.append(f"{method}: the ARM's accuracy is another, p = {p:.4f}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
