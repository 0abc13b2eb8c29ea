"""Mutated checkpoints, archives, IDX files, images and configurations: a clear refusal or a correct load, each time.

    python tests/robustness/fuzzing.py --count 10000        (`make fuzz`)

A case fails where anything but a `SparclError` comes out, where it takes longer than `SECONDS`, where the process needs
`MEMORY` bytes more than it had (also if that is then refused in one line), or where what was loaded is not what the
file says. A crash ends the process.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bombs import Bombs
from mutated import Case, Checkpoints, Data, StreamCheckpoints, toml

from sparcl.errors import SparclError, out_of_memory

SECONDS = 20
MEMORY = 2 << 30


@contextmanager
def limited() -> Iterator[None]:
    """No hang and no unbounded memory: both end in an error that is no refusal."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} seconds")

    sizes = Path("/proc/self/statm").read_text().split()
    before_memory = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(sizes[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    before = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before_memory[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before_memory)
        signal.signal(signal.SIGALRM, before)


def ran_out(error: BaseException | None) -> bool:
    """Whether a refusal is but an allocation that our own limit stopped: without the limit it would have been made."""
    while error is not None:
        if out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def fuzz(count: int, seed: int, root: Path) -> Counter[tuple[str, str]]:
    """`count` cases, shared over the kinds; how many of each kind were refused and loaded.

    Raises:
        AssertionError: cases were neither refused nor loaded correctly; it says which, to be made again.
    """
    os.environ["SPARCL_CACHE"] = "/dev/null/no-cache"
    for name in ("checkpoints", "streams", "data", "toml", "bombs"):
        (root / name).mkdir()
    checkpoints, data = Checkpoints(root / "checkpoints"), Data(root / "data")
    kinds: dict[str, Callable[[random.Random], Case]] = {
        "checkpoint, damaged": checkpoints.raw,
        "checkpoint, hostile": checkpoints.signed,
        "in a stream, hostile": StreamCheckpoints(root / "streams").signed,
        "archive": data.archive,
        "image": data.image,
        "image, read lazily": data.lazy_image,
        "IDX": data.idx_file,
        "configuration": toml(root / "toml"),
        "bomb": Bombs(root / "bombs", data, checkpoints).case,
    }
    weights = (20, 25, 10, 15, 8, 6, 12, 9, 1)
    found: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        (kind,) = rng.choices(list(kinds), weights)
        load = kinds[kind](rng)
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load()
            found[kind, "loaded"] += 1
        except Exception as error:
            if isinstance(error, SparclError) and "\n" not in str(error) and not ran_out(error):
                found[kind, "refused"] += 1
            else:
                wrong.append(f"case {seed}/{number} ({kind}): {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {count} cases", *wrong[:50]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutate files; each must be refused in one line or loaded correctly.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        found = fuzz(arguments.count, arguments.seed, Path(root))
    for kind in dict.fromkeys(kind for kind, _ in found):
        print(f"{kind:22} {found[kind, 'refused']:6} refused {found[kind, 'loaded']:6} loaded correctly")
    print(f"{sum(found.values())} cases in {time.monotonic() - began:.0f} s, seed {arguments.seed}: no other outcome")


if __name__ == "__main__":
    main()
