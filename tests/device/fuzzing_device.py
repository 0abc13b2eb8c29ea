"""Mutated model files, packed samples, images and arguments for `sparcl-device`: refused in one line, or taken.

    python tests/device/fuzzing_device.py PROGRAM --seconds 300        (`make fuzz-device`)

A case fails where the program crashes, takes longer than `SECONDS`, says more than one line, changes a file that it
refuses, leaves one that Python cannot read, sees other pixels than Python does, answers for more or fewer samples than
there are, refuses an image in one command that it takes in another, or lets a wrong argument pass. It has `MEMORY`
bytes of address space (not under a sanitizer, which needs more than there is): more is asked for in vain.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzed_arguments
import made
import numpy as np
import torch
from PIL import Image

from sparcl.checkpoint import model_file
from sparcl.errors import CheckpointError, DataError
from sparcl.methods import DERpp
from sparcl.run.export_device import pack
from sparcl.streams import Samples, images

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "robustness"))
from mutated import mutate, mutate_json

SECONDS, MEMORY = 20, 1 << 30
HONEST = ("not enough memory", "the loss became NaN or infinite")
"""With exit status 1: what no file can be blamed for at a glance."""


class Files:
    """What is mutated, and the program that gets it."""

    def __init__(self, program: Path, root: Path) -> None:
        self.program, self.root = program, root
        first, second, _ = made.stream()
        learner = made.learner("convnet", method=DERpp(200))
        learner.learn(first)
        self.file, self.samples = made.export(learner, root / "m.sparcl", first), root / "s.sparcl"
        made.packed(second, self.samples)
        self.model = self.file.read_bytes()
        floats = Samples(second.train.inputs.float() / 255, second.train.labels)
        pack(floats, made.CLASSES, root / "floats.sparcl")
        self.packed = [path.read_bytes() for path in (self.samples, root / "floats.sparcl")]
        (root / "floats.sparcl").unlink()
        rng = np.random.default_rng(0)
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = Image.fromarray((np.mgrid[:8, :8].sum(0) * 18).astype(np.uint8)).convert("RGB")
        smooth.paste(noise, (4, 0))
        kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (smooth, "JPEG", {}),
            (smooth, "JPEG", {"progressive": True, "subsampling": "4:4:4"}),
            (smooth.convert("L"), "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"}),
            (smooth.convert("CMYK"), "JPEG", {}),
            (smooth, "PNG", {}),
            (smooth.quantize(16), "PNG", {}),
            (smooth.convert("LA"), "PNG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0"}),
            (smooth, "PPM", {}),
        ]
        self.images = [self._saved(*kind) for kind in kinds]

    def _saved(self, image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def run(self, *arguments: object, answers: int | None = None) -> int:
        """The program under its limits; its status, where what it said is in order.

        answers: lines that it has to say where it does its work; None: any number.
        """

        def limit() -> None:
            if not made.SANITIZED:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

        threads = () if "--threads" in arguments or arguments[0] == "info" else ("--threads", 1)
        command = [str(part) for part in (self.program, *arguments, *threads)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, preexec_fn=limit)
        errors = done.stderr.decode()
        assert done.returncode in (0, 1, 2), f"status {done.returncode}: {errors[-2000:]}"
        assert errors.count("\n") == (done.returncode != 0), errors
        assert done.returncode != 1 or any(said in errors for said in HONEST), errors
        assert all(c >= 0x20 or c == 0x0A for c in done.stderr), "a file's names steer the terminal"
        said = done.stdout.decode()
        early = arguments[0] in ("learn", "predict")  # progress, and what was answered before
        assert done.returncode == 0 or early or said == "", "something was said before the refusal"
        assert said.endswith("\n") or (done.returncode and not said), "nothing was said, or half a line"
        assert done.returncode != 0 or answers in (None, said.count("\n")), f"{answers} answers wanted: {said}"
        return done.returncode

    def reading(self, rng: random.Random, samples: Path) -> int:
        """One of the commands that read model and samples and write nothing."""
        before = self.file.read_bytes()
        status = self.run(rng.choice(("predict", "evaluate")), self.file, samples)
        assert self.file.read_bytes() == before, "a command that only reads has written"
        return status

    def learn(self, samples: Path, *options: object) -> int:
        """One step; the file is as it was, or whole again."""
        before = self.file.read_bytes()
        status = self.run("learn", self.file, samples, "--steps", 1, *options)
        if status:
            assert self.file.read_bytes() == before, "a file that was refused has changed"
        else:
            assert model_file.read(self.file).state["learner"]["position"] is None
        assert not list(self.root.glob(".*")), "something stayed"
        return status


def raw(files: Files, rng: random.Random) -> int:
    """A damaged model file: the checksum is to tell, but for bytes that say nothing."""
    files.file.write_bytes(mutate(files.model, rng))
    files.run(*rng.choice((("info",), ("bench", "--steps", 1))), files.file)
    files.reading(rng, files.samples)
    return files.learn(files.samples)


def signed(files: Files, rng: random.Random) -> int:
    """A stranger's model file: strange content under a right checksum."""
    files.file.write_bytes(files.model)
    model = model_file.read(files.file)
    part = rng.choice(("classes", "device", "graph", "input_shape", "transform", "state"))
    if part == "state" and rng.random() < 0.5:
        layer = rng.choice(list(model.state["layers"].values()))
        layer["index"] = torch.randint(-5, 600, layer["index"].shape, dtype=torch.int32, generator=_generator(rng))
    elif part == "state":
        tree = model.state[rng.choice(("settings", "optimizer"))]
        tree.update({k: mutate_json({k: v}, rng).get(k) for k, v in json.loads(json.dumps(tree)).items()})
    else:
        model = model_file.ModelFile(**{**vars(model), part: mutate_json(getattr(model, part), rng)})
    try:
        model_file.write(files.file, model)
    except CheckpointError:  # no file can say that
        return 2
    files.run(*rng.choice((("info",), ("bench", "--steps", 1))), files.file)
    files.reading(rng, files.samples)
    return files.learn(files.samples)


def _generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(32))


def samples(files: Files, rng: random.Random) -> int:
    """Damaged samples, which have no checksum: in a value, in what the header says, or anywhere."""
    files.file.write_bytes(files.model)
    data, kind = rng.choice(files.packed), rng.random()
    if kind < 0.3:  # a pixel or a label
        at = rng.randrange(8 + int.from_bytes(data[:8], "little"), len(data))
        data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    elif kind < 0.65:
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), rng)).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    else:
        data = mutate(data, rng)
    (files.root / "case.sparcl").write_bytes(data)
    files.reading(rng, files.root / "case.sparcl")
    return files.learn(files.root / "case.sparcl")


def image(files: Files, rng: random.Random) -> int:
    """A damaged image: what is taken has the pixels that Python sees."""
    files.file.write_bytes(files.model)
    content = mutate(rng.choice(files.images), rng)
    for name in ("new", "newer"):  # training needs two
        (place := files.root / "images" / name / "x").parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    command, answers = rng.choice((("predict", 1), ("evaluate", 3)))  # one a class, and their mean
    looked = files.root / "images" if command == "evaluate" else rng.choice((place, place.parent))
    status = files.learn(files.root / "images", "--resize")  # evaluate refuses classes that were never learned
    read = files.run(command, files.file, looked, "--resize", answers=answers)
    assert status == read or status == 1, f"learn says {status}, {command} says {read}"
    if status:
        return status
    buffer = model_file.read(files.file).state["learner"]["method"]["buffer"]
    seen = buffer["inputs"][buffer["labels"] >= 4].numpy()
    try:
        theirs = images.decode(content, "x", (8, 8)).transpose(2, 0, 1)
    except DataError:
        return 0  # Pillow is the stricter one, e.g. of checksums that say nothing of pixels
    assert len(seen) == 2, "what was learned is not remembered"
    assert all(np.array_equal(ours, theirs) for ours in seen), "other pixels than Python's"
    return 0


def arguments(files: Files, rng: random.Random) -> int:
    """Arguments right and wrong: a wrong one is refused before anything is done, a right one is not."""
    files.file.write_bytes(files.model)
    call = fuzzed_arguments.call(rng, files.file, files.samples)
    before = {place.name for place in files.root.iterdir()}
    status = files.run(*call.words)
    assert (status == 2) == call.wrong, f"status {status}: {call}"
    new = {place.name for place in files.root.iterdir()} - before
    assert new == set(() if call.wrong else call.makes), f"{new} is new: {call}"
    for name in new:
        (files.root / name).unlink()
    if call.wrong or not call.changes:
        assert files.file.read_bytes() == files.model, f"the file has changed: {call}"
    return status


KINDS: tuple[Callable[[Files, random.Random], int], ...] = (raw, signed, samples, image, arguments)


def fuzz(
    program: Path, root: Path, seed: int, *, count: int = 1 << 60, seconds: float = 1e9
) -> Counter[tuple[str, str]]:
    """So many cases, or so long; what happened to each kind."""
    files, found = Files(program, root), Counter[tuple[str, str]]()
    end = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > end:
            break
        kind, rng = KINDS[number % len(KINDS)], random.Random(f"{seed} {number}")
        try:
            status = kind(files, rng)
        except BaseException as error:
            error.add_note(f"case {number} of seed {seed}, {kind.__name__}")
            raise
        found[kind.__name__, ("taken", "out of memory or NaN", "refused")[status]] += 1
    return found


def main() -> None:
    """For so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=made.memory()) as folder:
        found = fuzz(given.program, Path(folder), given.seed, seconds=given.seconds)
    for (kind, what), times in sorted(found.items()):
        print(f"{kind:9} {what:22} {times}")
    print(f"{found.total()} cases, none failed (seed {given.seed})")


if __name__ == "__main__":
    main()
