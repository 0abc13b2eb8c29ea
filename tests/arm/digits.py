"""seq-digits by Python, by sparcl-device here and by sparcl-device on an emulated ARM, from the same untrained file.

Prints a table in Markdown, and fails where the executed multiply-adds differ or where an accuracy is further from
Python's than runs of one seed are from each other (docs/device.md, whole runs: up to 4 points; here `--noise`).
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", type=Path, required=True, help="sparcl-device for this machine")
    parser.add_argument("--arm", type=Path, required=True, help="a script that runs the ARM program emulated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=device_equal.EPOCHS)
    parser.add_argument("--methods", nargs="+", default=["er", "derpp"])
    parser.add_argument("--noise", type=float, default=5.0, help="points of accuracy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device_equal.EPOCHS = given.epochs
    stream, failed = seq_digits(), []
    print("| method | seed | accuracy, Python | device, x86-64 | device, ARM | multiply-adds, Python | x86-64 | ARM |")
    print("|---|---|---|---|---|---|---|---|")
    for method in given.methods:
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
            if len(set(work)) != 1:
                failed.append(f"{method}, seed {seed}: the multiply-adds differ")
            if abs(accuracy - python) > given.noise:
                failed.append(f"{method}, seed {seed}: {accuracy:.2f} is not {python:.2f} within {given.noise} points")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
