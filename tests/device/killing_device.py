"""`sparcl-device learn` killed or stopped at random moments, saving included, and called again until it is done.

    python tests/device/killing_device.py PROGRAM --kills 200        (`make fault-device`)

The file must then be the one of a run that was never stopped, to the last byte.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import made

from sparcl.checkpoint import model_file

ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGHUP: (129, -1)}
"""How it is ended, and with what status it may end: at once where nothing has begun, else by its own."""
HALF_WRITTEN = "half-written"


def hears_hangups() -> None:
    """For a child: SIGHUP is not ignored, as it is where these tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def learn(program: Path, file: Path, steps: int) -> list[str]:
    """A run that saves after every step."""
    options = ("--steps", steps, "--threads", 1, "--save-every", 0)
    return [str(part) for part in (program, "learn", file, file.with_name("s.sparcl"), *options)]


def prepared(folder: Path) -> Path:
    """A model file that stands before its second task, the samples of which lie beside it as s.sparcl."""
    first, second, _ = made.stream(per_class=100)
    learner = made.learner("resnet")
    learner.learn(first)
    made.packed(second, folder / "s.sparcl")
    return made.export(learner, folder / "m.sparcl", first)


def kill_until_done(
    command: Sequence[str], file: Path, rng: random.Random, longest: float, ends: Sequence[signal.Signals]
) -> Counter[str]:
    """Start, end in one of the ways within `longest` seconds, again, until one gets to its end; what happened.

    One that is ended between its last save and its exit has got there: the same command would learn another task. The
    seconds grow a little with every time, should the machine have become slower.
    """
    happened: Counter[str] = Counter()
    before = model_file.read(file).state["learner"]["learned"]
    while True:
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, preexec_fn=hears_hangups, **pipes)
        how = rng.choice(list(ends))
        try:
            process.wait(rng.uniform(0, longest * 1.03 ** happened.total()))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert errors == ""
        if process.returncode == 0:
            return happened
        assert process.returncode in ENDS[how], process.returncode
        happened[how.name] += 1
        happened[HALF_WRITTEN] += file.with_name(f".{file.name}.tmp").exists()
        if model_file.read(file).state["learner"]["learned"] > before:  # read: it is whole, whatever the moment
            return happened


def check(program: Path, folder: Path, rng: random.Random, steps: int, ends: Sequence[signal.Signals]) -> Counter[str]:
    """One run that is ended again and again, against one that is not; what happened how often."""
    file = prepared(folder)
    before = file.read_bytes()
    begun = time.monotonic()
    subprocess.run(learn(program, file, steps), check=True, stdout=subprocess.DEVNULL)
    longest, wanted = (time.monotonic() - begun) / 4, file.read_bytes()
    assert wanted != before
    file.write_bytes(before)
    happened = kill_until_done(learn(program, file, steps), file, rng, longest, ends)
    assert file.read_bytes() == wanted, f"other bytes after {dict(happened)}"
    assert sorted(place.name for place in folder.iterdir()) == ["m.sparcl", "s.sparcl"], "something stayed"
    return happened


def main() -> None:
    """Until so many were ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, happened = random.Random(given.seed), Counter[str]()
    while happened.total() - happened[HALF_WRITTEN] < given.kills:
        with tempfile.TemporaryDirectory(dir=made.memory()) as folder:
            happened += check(given.program, Path(folder), rng, 300, list(ENDS))
        print(dict(happened), flush=True)


if __name__ == "__main__":
    main()
