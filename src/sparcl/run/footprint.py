"""Prints the peak memory of a few training steps, less that after `import torch`, in bytes: one side, one process.

Run by `sparcl bench`: `python -m sparcl.run.footprint '{"side": {"variant": "native", ...}}'`; with --job it is
`'{"job": {"stream": "seq-digits", ...}, "samples": 290}'`, a Learner's settings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STEPS = 4


def resident(field: str) -> int | None:
    """VmRSS (now) or VmHWM (the most so far) of this process, bytes; None where the system does not say.

    Not getrusage's maximum: that of a new process begins with its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def main() -> None:
    """Make the steps that the argument asks for, print the figure as JSON."""
    import torch

    before = resident("VmRSS")
    asked = json.loads(sys.argv[1])
    if "job" in asked:
        from sparcl.run.job import two_turns

        torch.set_num_threads(asked["job"]["threads"])
        two_turns(asked["job"], asked["samples"])
    else:
        from sparcl.run.bench import Side

        side = Side(**asked["side"])
        torch.set_num_threads(side.threads)
        _, step = side.build()
        for _ in range(STEPS):
            step()
    peak = resident("VmHWM")
    print(json.dumps(None if before is None or peak is None else peak - before))


if __name__ == "__main__":
    main()
