"""Instructions of a training step of sparcl-device on an emulated ARM, by kernel and function (`make count-neon`).

A step is what a run of some steps executes more than a run of fewer, so that starting and saving cost nothing. The
file's own account has the multiply-adds of a step. The estimate of boards and phones at the end is from these counts
and from published clock rates; none was run on one.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sparcl.checkpoint import model_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from device_memory import JOBS as TIMED  # noqa: E402  (a script beside others, found by the line above)
from device_memory import prepare  # noqa: E402

WIDE = "ResNet-18, width 64, .95"
NARROW = WIDE.replace("64", "16")
TINY = "digits .90, width 8"
KINDS = TIMED | {NARROW: TIMED[WIDE] | {"width": 16}, TINY: TIMED["digits .90"] | {"width": 8}}
JOBS = {"digits .90": (4, 8), TINY: (4, 8), NARROW: (1, 2), WIDE: (1, 2)}
"""Jobs of benchmarks/device_memory.py and narrow ones; the steps of the two runs whose difference counts."""

CORES = {
    "Pi 4, Cortex-A72 at 1.5 GHz": (1.5, 3, 1),
    "Pi 4, Cortex-A72 at 1.8 GHz": (1.8, 3, 1),
    "Pi 5, Cortex-A76 at 2.4 GHz": (2.4, 4, 2),
    "phone, Cortex-A715 at 2.8 GHz": (2.8, 5, 2),
    "phone, Cortex-X3 at 3.2 GHz": (3.2, 6, 4),
}
"""GHz, instructions that are decoded a cycle, FMLA of four lanes that start in a cycle."""


@dataclass
class Step:
    instructions: float
    fmla: float
    multiply_adds: float
    blocks: Counter[int] = field(default_factory=Counter)
    """Instructions by the address of the block of code."""


def executed(file: Path) -> int:
    return int(model_file.read(file).device.get("cost", {}).get("executed", 0))


def run(given: argparse.Namespace, program: Path, isa: str, folder: Path, steps: int) -> Step:
    """One `learn` of so many steps, from a fresh copy of the file."""
    file, counts = folder / "run.sparcl", folder / "counts"
    shutil.copy(folder / "m.sparcl", file)
    counts.unlink(missing_ok=True)
    before = executed(file)
    plugin = f"file={given.plugin},out={counts},blocks={int(given.functions > 0)}"
    emulator = [given.qemu, "-cpu", "max", "-plugin", plugin]
    samples, once = folder / "s.sparcl", ["--save-every", "1000000"]  # at the end only, however slow it is
    learn = [program, "learn", file, samples, "--steps", str(steps), "--threads", "1", *once]
    subprocess.run([*emulator, *learn], check=True, stdout=subprocess.DEVNULL, env=os.environ | {"SPARCL_ISA": isa})
    text = counts.read_text()
    found = re.findall(r"instructions (\d+) fmla (\d+)", text)
    if len(found) != 1:
        raise SystemExit(f"one process was to be counted, not {len(found)}")
    blocks: Counter[int] = Counter()
    for address, length, times in re.findall(r"block (\w+) (\d+) (\d+)", text):
        blocks[int(address, 16)] += int(length) * int(times)
    return Step(float(found[0][0]), float(found[0][1]), (executed(file) - before) / 2, blocks)


def step(given: argparse.Namespace, program: Path, isa: str, folder: Path, steps: tuple[int, int]) -> Step:
    few, more = (run(given, program, isa, folder, n) for n in steps)
    apart = steps[1] - steps[0]
    names = ("instructions", "fmla", "multiply_adds")
    more.blocks.subtract(few.blocks)
    return Step(*((getattr(more, n) - getattr(few, n)) / apart for n in names), more.blocks)


def print_functions(given: argparse.Namespace, name: str, one: Step) -> None:
    """Where a step's instructions are executed: the functions that have most of them."""
    said = subprocess.run([given.nm, "-n", "-C", given.program], check=True, capture_output=True, text=True).stdout
    functions = [(int(at, 16), text) for at, text in re.findall(r"^(\w+) [tTwWuVvi] (.*)$", said, re.MULTILINE)]
    if not functions:
        raise SystemExit(f"{given.program} names no functions: build it with -DSPARCL_SYMBOLS=ON")
    starts, found, total = [at for at, _ in functions], Counter[str](), sum(one.blocks.values())
    for address, count in one.blocks.items():
        found[functions[max(0, bisect.bisect_right(starts, address) - 1)][1]] += count
    print(f"\n| {name}, NEON: function | share of the instructions |\n|---|---|")
    for function, count in found.most_common(given.functions):
        short = re.sub(r"sparcl::|\(anonymous namespace\)::|^(void|long|Visited) ", "", function).split("(")[0]
        print(f"| `{short}` | {100 * count / total:.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", default="qemu-aarch64")
    parser.add_argument("--plugin", type=Path, required=True)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--scalar", type=Path, help="the program built without SIMD")
    parser.add_argument("--functions", type=int, default=0, help="list so many, those with the most instructions")
    parser.add_argument("--nm", default="aarch64-linux-gnu-nm", help="to read the program's names of functions")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS), metavar="JOB")
    given = parser.parse_args()
    sides = [("NEON kernels", given.program, "neon"), ("plain, as the compiler makes it", given.program, "plain")]
    if given.scalar:
        sides.append(("plain, without SIMD", given.scalar, "plain"))
    print("| job | kernels | instructions | against NEON | FMLA of 4 lanes | multiply-adds | instructions : ideal |")
    print("|---|---|---|---|---|---|---|")
    neon: dict[str, Step] = {}
    for name, steps in ((name, JOBS[name]) for name in given.jobs):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            prepare(KINDS[name], folder)
            for side, program, isa in sides:
                one = step(given, program, isa, folder, steps)
                base = neon.setdefault(name, one)
                print(
                    f"| {name} | {side} | {one.instructions / 1e6:,.1f} M | {one.instructions / base.instructions:.2f}"
                    f" | {one.fmla / 1e6:,.2f} M | {one.multiply_adds / 1e6:,.1f} M"
                    f" | {one.instructions / (one.multiply_adds / 4):.2f} |",
                    flush=True,
                )
    for name, one in neon.items() if given.functions else ():
        print_functions(given, name, one)
    print("\n| estimate, one core | " + " | ".join(f"{n}: ideal | decode full | 1 a cycle" for n in neon) + " |")
    print("|---|" + "---|---|---|" * len(neon))
    for core, (ghz, decoded, pipes) in CORES.items():
        cells = []
        for one in neon.values():
            fused = one.multiply_adds / 4
            for cycles in (fused / 2, max(one.instructions / decoded, one.fmla / pipes), one.instructions):
                cells.append(f"{cycles / ghz / 1e6:,.2f} ms")
        print(f"| {core} | " + " | ".join(cells) + " |")
    counts = {name: {"instructions": one.instructions, "fmla": one.fmla} for name, one in neon.items()}
    print(json.dumps(counts), file=sys.stderr)


if __name__ == "__main__":
    main()
