"""Small files that ask for endless work or memory: cases of fuzzing.py, none of which may be taken."""

from __future__ import annotations

import copy
import io
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

from mutated import Case, Checkpoints, Data, check_stream, write_tar, write_zip

import sparcl
from sparcl import streams


class Bombs:
    """Small files that ask for endless work or memory: each must be refused."""

    def __init__(self, root: Path, data: Data, checkpoints: Checkpoints) -> None:
        self.root, self.data, self.checkpoints = root, data, checkpoints
        self.kinds = (self.pickled, self.pictures, self.headers, self.network)

    def case(self, rng: random.Random) -> Case:
        load = rng.choice(self.kinds)(rng)

        def refused() -> None:
            load()
            raise AssertionError("it was taken")

        return refused

    def pickled(self, rng: random.Random) -> Case:
        """Parts that share parts, forty deep, as values or as a key."""
        width, kind = rng.choice((2, 3, 9)), rng.randrange(3)
        if kind == 0:
            value: Any = {}
            for _ in range(40):
                value = {b"%d" % i: value for i in range(width)}
            bomb = pickle.dumps(value, 2)
        elif kind == 1:
            value = []
            for _ in range(40):
                value = [value] * width
            bomb = pickle.dumps({b"data": value}, 2)
        else:
            bomb = b"\x80\x02}(K\x01K\x02t" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
        path = write_tar(self.root / "pickled.tar", {**self.data.cifar, "cifar-10-batches-py/data_batch_1": bomb}, "w")
        return lambda: check_stream(streams.load("seq-cifar10", path))

    def pictures(self, rng: random.Random) -> Case:
        """A small archive of giant blank pictures."""
        from PIL import Image

        blank = io.BytesIO()
        Image.new("1", (8000, rng.choice((7000, 8000)))).save(blank, "PNG")
        files = {f"{split}/a/{i}.png": blank.getvalue() for split in ("train", "test") for i in range(40)}
        path = write_zip(self.root / "pictures.zip", files)
        return lambda: check_stream(streams.load("folder", path, resize=rng.choice((None, 8))))

    def headers(self, rng: random.Random) -> Case:
        """A tar whose extended header goes on and on."""
        path = self.root / "headers.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("train/a/0.png")
            info.pax_headers = {"comment": "x" * (8 << 20)}
            for _ in range(rng.randint(1, 3)):
                archive.addfile(info)
        return lambda: check_stream(streams.load("folder", path))

    def network(self, rng: random.Random) -> Case:
        """A checkpoint that names a network much larger than its tensors."""
        checkpoints = self.checkpoints
        state = copy.deepcopy(checkpoints.tree)
        made_from = state["settings"]["made_from"]
        arguments = {"blocks": [rng.choice((2, 9, 200))] * 4, "channels": 3, "classes": 10, "width": 1024}
        made_from["model"] = rng.choice(
            (
                {"kind": "ResNet", "arguments": arguments},
                {"kind": "MLP", "arguments": {"classes": 4, "input_shape": [1 << 14, 4, 4], "width": 1 << 14}},
            )
        )
        folder = checkpoints.copy()
        checkpoints.sign(folder, state)

        def load() -> None:
            sparcl.Learner.load(folder, backend="reference")

        return load
