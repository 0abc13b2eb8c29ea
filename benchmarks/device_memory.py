"""sparcl-device against Python's native backend: peak memory and processor time of the same job, at one thread.

    make sparcl-device && python benchmarks/device_memory.py

Each side learns one task of the same samples in a process of its own, from the same file: the program by `learn`,
Python by `Learner.load` and `learn`. Time is the process's own processor time of `--steps` steps, less that of few
steps: starting costs nothing. Both take turns; the median of `--rounds` counts. Memory is the peak of the whole
process (what this small process itself takes, some 10 MB, is the least that can be seen).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FEW = 4

PYTHON = """
import sys, torch
torch.set_num_threads(1)
from sparcl import Learner, streams
from sparcl.learner.budget import Budget
from sparcl.streams import Transform
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from device_memory import task
learner = Learner.load(sys.argv[1], backend="native")
learner.budget = Budget.of(None, int(sys.argv[3]), None)
learner.settings["budget"] = {"steps": int(sys.argv[3])}
learner.learn(task(sys.argv[2]))
"""

JOBS = {
    "digits .90": {"stream": "seq-digits", "width": 16, "sparsity": 0.90, "limit": 30e6, "steps": 200},
    "ResNet-18, width 64, .95": {"stream": "cifar shapes", "width": 64, "sparsity": 0.95, "limit": 150e6, "steps": 12},
}
"""DER++ with 200 samples, batch 32; `limit`: bytes that the program may take."""


def stream(name: str):
    """seq-digits, or noise of CIFAR-10's shapes."""
    import torch

    from sparcl import streams

    if name == "seq-digits":
        return streams.seq_digits()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(2000) % 10
    transform = streams.Transform(crop_padding=4, flip=True)
    return streams.from_arrays(inputs, labels, inputs[:20], labels[:20], transform=transform, name=name)


def task(name: str):
    """The second one."""
    return stream(name)[1]


def prepare(job: dict, folder: Path) -> None:
    """m.sparcl, which stands before its second task with a full buffer, and the task's samples."""
    import torch

    from sparcl import Learner
    from sparcl.methods import DERpp
    from sparcl.nn import build
    from sparcl.run.export_device import export_device, pack
    from sparcl.sparsity import Static

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tasks = stream(job["stream"])
    model = "convnet" if job["stream"] == "seq-digits" else "resnet18"
    network = build(model, tasks.n_classes, tasks.input_shape, job["width"])
    options = {"lr": 0.01, "batch_size": 32, "steps": 8, "seed": 0, "backend": "native"}
    learner = Learner(network, DERpp(200), Static(job["sparsity"]), **options)
    learner.learn(tasks[0])
    names = [str(name) for name in tasks.class_names]
    shape = tasks.input_shape
    export_device(learner, folder / "m.sparcl", transform=tasks[0].transform, input_shape=shape, classes=names)
    pack(tasks[1].train, names, folder / "s.sparcl")


def measured(command: list[str]) -> tuple[float, int]:
    """Processor seconds and peak bytes of a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    """Prepare, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=Path("build/program/native/sparcl-device"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a task; default: the job's")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(JOBS[options.prepare[0]], Path(options.prepare[1]))
        return
    rows = []
    for name, job in JOBS.items():
        steps = options.steps or job["steps"]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            made = subprocess.run(
                [sys.executable, __file__, "--prepare", name, place], check=False
            )  # PyTorch stays out
            if made.returncode:
                raise SystemExit("no files to measure with")
            times: dict[str, list[float]] = {"device": [], "python": []}
            peaks: dict[str, int] = {"device": 0, "python": 0}
            for _ in range(options.rounds):
                for side, spent in times.items():
                    of = {count: one(side, options.program, job, folder, count) for count in (FEW, FEW + steps)}
                    spent.append((of[FEW + steps][0] - of[FEW][0]) / steps)
                    peaks[side] = max(peaks[side], of[FEW + steps][1])
        medians = {side: 1000 * statistics.median(spent) for side, spent in times.items()}
        row = {"job": name, "steps": steps, "limit_bytes": job["limit"]}
        row |= {f"{side}_ms": ms for side, ms in medians.items()} | {
            f"{side}_peak_bytes": p for side, p in peaks.items()
        }
        rows.append(row)
        print(
            f"{name}: a step {medians['device']:.2f} ms, Python {medians['python']:.2f} ms"
            f" ({medians['device'] / medians['python']:.2f}); peak {peaks['device'] / 1e6:.1f} MB,"
            f" Python {peaks['python'] / 1e6:.0f} MB; {job['limit'] / 1e6:.0f} MB"
            f" {'kept' if peaks['device'] < job['limit'] else 'NOT KEPT'}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def one(side: str, program: Path, job: dict, folder: Path, steps: int) -> tuple[float, int]:
    """One run of one side, on a copy of the file."""
    file = shutil.copy(folder / "m.sparcl", folder / "copy.sparcl")
    if side == "device":
        command = [program, "learn", file, folder / "s.sparcl", "--steps", steps, "--threads", 1]
    else:
        command = [sys.executable, "-c", PYTHON, file, job["stream"], steps, Path(__file__).parent]
    return measured([str(part) for part in command])


if __name__ == "__main__":
    main()
