"""Checkpoints, archives, IDX files, images and configurations, mutated: the cases of fuzzing.py."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparcl
from sparcl import streams
from sparcl.checkpoint import files, tree
from sparcl.checkpoint.store import open_folder
from sparcl.methods import DERpp
from sparcl.nn import MLP
from sparcl.run.experiment import Experiment
from sparcl.run.toml import read_toml
from sparcl.streams.idx import read_idx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streams"))
from made_data import tree as image_tree
from made_data import write_folder, write_tar, write_zip

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
VALUES = (None, True, -1, 0, 1, 2, 7, 1e308, 1 << 31, 1 << 70, "", "x", "../../x", [], {}, [[]], {"$tensor": "x"}, 0.5)

Case = Callable[[], None]
"""Loads one mutated thing; raises SparclError (a refusal), AssertionError (a wrong load), or nothing."""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, insert or repeat, one to four times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.6 else min(rng.randrange(512), len(out))
        length = rng.choice((1, 2, 4, 8, rng.randint(1, 64)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice(INTERESTING).to_bytes(8, rng.choice(("little", "big")))
            out[at : at + length] = number[-length:] if length <= 8 else number
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = rng.randbytes(length)
        elif kind == 4:
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Replace, remove, double or rename one node, wherever it is."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    for _ in range(rng.randint(1, 2)):
        node, key = rng.choice(places)
        if not (key in node if isinstance(node, dict) else key < len(node)):
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(("unknown", f"{key}x", "__class__"))] = node.pop(key)
        elif kind == 2:
            other, where = rng.choice(places)
            node[key] = (
                copy.deepcopy(other[where]) if where in (other if isinstance(other, dict) else range(len(other))) else 0
            )
        elif kind == 3 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = rng.choice((node[key] + 1, node[key] - 1, -node[key], float(node[key]), node[key] * 1000))
        else:
            node[key] = rng.choice(VALUES)
    return value


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Checkpoints:
    """A small Learner's checkpoint inside a task, with momentum, buffer, masks: everything that a state can hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        generator = torch.Generator().manual_seed(0)
        inputs, labels = torch.rand(48, 1, 4, 4, generator=generator), torch.arange(48) % 4
        self.stream = streams.from_arrays(inputs, labels, inputs, labels)
        torch.manual_seed(0)
        learner = sparcl.Learner(
            MLP(4, (1, 4, 4), 12),
            DERpp(8),
            sparcl.SparCL(0.5, pattern="block"),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
            epochs=2,
            batch_size=4,
            backend="reference",
            checkpoint_dir=root / "good",
            checkpoint_every=5,
        )
        self.train(learner)
        self.good = next(p for p in sorted((root / "good").iterdir()) if p.name == "step-10")
        self.state = open_folder(self.good)
        self.tree = json.loads((self.good / files.STATE).read_text())
        self.number = 0

    def train(self, learner: sparcl.Learner) -> None:
        learner.learn(self.stream[0])

    def go_on(self, learner: sparcl.Learner) -> None:
        learner.learn(self.stream[learner.learned] if learner.learned < len(self.stream) else self.stream[0])

    def copy(self) -> Path:
        folder = self.root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.good, folder)
        return folder

    def sign(self, folder: Path, state: Any = None) -> dict[str, Any]:
        """Give a folder the right checksums, and `state` in place of its own; the manifest."""
        if state is not None:
            (folder / files.STATE).write_text(json.dumps(state))
        manifest: dict[str, Any] = json.loads((folder / files.MANIFEST).read_text())
        for name in (files.STATE, files.TENSORS):
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / files.MANIFEST).write_text(json.dumps(manifest))
        return manifest

    def raw(self, rng: random.Random) -> Case:
        """One file damaged, missing, or something else: nothing but the state that was saved may come out."""
        folder = self.copy()
        path = folder / rng.choice((files.MANIFEST, files.STATE, files.TENSORS))
        kind = rng.random()
        if kind < 0.9:
            path.write_bytes(mutate(path.read_bytes(), rng))
        else:
            path.unlink()
            if kind > 0.97:
                path.mkdir()
            elif kind > 0.95:
                path.symlink_to("/dev/zero")
            elif kind > 0.93:
                os.mkfifo(path)

        def load() -> None:
            assert tree.difference(open_folder(folder), self.state) is None, "another state was loaded"

        return load

    def signed(self, rng: random.Random) -> Case:
        """A stranger's checkpoint: strange content under right checksums. It is refused, or taken exactly as it is."""
        folder = self.copy()
        kind = rng.random()
        if kind < 0.6:
            (folder / files.STATE).write_text(json.dumps(mutate_json(self.tree, rng)))
        elif kind < 0.85:
            data = (folder / files.TENSORS).read_bytes()
            length = int.from_bytes(data[:8], "little")
            text = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), rng)).encode()
            (folder / files.TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        else:
            path = folder / rng.choice((files.STATE, files.TENSORS))
            path.write_bytes(mutate(path.read_bytes(), rng))
        manifest = self.sign(folder)
        if rng.random() < 0.05:
            manifest = mutate_json(manifest, rng)
        (folder / files.MANIFEST).write_text(json.dumps(manifest))

        def load() -> None:
            learner = sparcl.Learner.load(folder, backend="reference")
            said, taken = open_folder(folder), learner.checkpoint_state()
            for part in ("model", "layers", "learner"):
                assert (where := tree.difference(said[part], taken[part], part)) is None, f"{where} was loaded wrongly"
            self.go_on(learner)

        return load


class StreamCheckpoints(Checkpoints):
    """The same in a stream without borders."""

    def train(self, learner: sparcl.Learner) -> None:
        for x, y in streams.single_pass(self.stream, 4):
            learner.observe(x, y)

    def go_on(self, learner: sparcl.Learner) -> None:
        learner.observe(*next(streams.single_pass(self.stream, 4)))


# --- data -------------------------------------------------------------------------------------------------------------


def check_stream(stream: streams.Stream) -> None:
    """What every loaded stream must be."""
    for task in stream:
        assert (task.test is not None) == stream.tested
        for samples in filter(None, (task.train, task.test)):
            assert samples.inputs.dtype == torch.uint8
            assert samples.inputs.dim() == 4
            assert len(samples.inputs) == len(samples.labels) > 0
            assert set(samples.labels.tolist()) <= set(task.classes)


class Data:
    """Small official archives, image trees and IDX files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = image_tree(classes=2, train=2, test=1, side=8)
        pixels, labels = np.arange(20 * 3072, dtype=np.uint64).astype(np.uint8).reshape(20, 3072), list(range(10)) * 2
        content = {b"data": pixels, b"labels": labels, b"filenames": [b"x.png"] * 20}
        self.cifar = {
            f"cifar-10-batches-py/{name}": pickle.dumps(content, 2)
            for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        }
        names = {b"label_names": [b"class %d" % k for k in range(10)]}
        self.cifar["cifar-10-batches-py/batches.meta"] = pickle.dumps(names, 2)
        self.sources = {
            "tree.zip": write_zip(root / "tree.zip", self.images).read_bytes(),
            "tree.tar": write_tar(root / "tree.tar", self.images, "w").read_bytes(),
            "tree.tar.gz": write_tar(root / "tree.tar.gz", self.images).read_bytes(),
            "cifar.tar.gz": write_tar(root / "cifar.tar.gz", self.cifar).read_bytes(),
            "cifar.zip": write_zip(root / "cifar.zip", self.cifar).read_bytes(),
        }
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (6, 5, 4))
        self.idx = header + bytes(range(120))

    def archive(self, rng: random.Random) -> Case:
        name = rng.choice(list(self.sources))
        path = self.root / f"case-{name}"
        if rng.random() < 0.4:  # the container is sound, what is in it is not
            members = dict(self.images if name.startswith("tree") else self.cifar)
            if rng.random() < 0.2:
                members[rng.choice(("../evil.png", "/tmp/evil.png", "train/../../evil.png"))] = b"x"
            else:
                victim = rng.choice(list(members))
                members[victim] = mutate(members[victim], rng)
            write = write_zip if name.endswith("zip") else write_tar
            write(path, members)
        else:
            path.write_bytes(mutate(self.sources[name], rng))
        stream = "folder" if name.startswith("tree") else "seq-cifar10"
        return lambda: check_stream(streams.load(stream, path))

    def image(self, rng: random.Random) -> Case:
        members = dict(self.images)
        victim = rng.choice(list(members))
        members[victim] = mutate(members[victim], rng)
        root = self.root / "case-images"
        shutil.rmtree(root, ignore_errors=True)
        write_folder(root, members)
        return lambda: check_stream(streams.load("folder", root))

    def lazy_image(self, rng: random.Random) -> Case:
        """Read lazily, and damaged or gone before or after the first pass."""
        members = dict(self.images)
        victim = rng.choice(list(members))
        damaged = mutate(members[victim], rng)
        root = self.root / "case-lazy"
        shutil.rmtree(root, ignore_errors=True)
        later = rng.random() < 0.5
        write_folder(root, members if later else {**members, victim: damaged})
        vanishes = rng.random() < 0.3

        def load() -> None:
            stream = streams.load("folder", root, lazy=True)
            if later:
                (root / victim).unlink()
                if not vanishes:
                    (root / victim).write_bytes(damaged)
            for task in stream:
                for samples in filter(None, (task.train, task.test)):
                    read = samples.inputs[:]
                    assert read.dtype == torch.uint8
                    assert read.shape == (len(samples.labels), *stream.input_shape)
            assert not (later and vanishes), "an image that is gone was read"

        return load

    def idx_file(self, rng: random.Random) -> Case:
        import gzip

        path = self.root / "case-idx"
        data = mutate(self.idx, rng)
        if rng.random() < 0.3:
            data = gzip.compress(data, 1)
        elif rng.random() < 0.3:
            data = mutate(gzip.compress(self.idx, 1), rng)
        path.write_bytes(data)

        def load() -> None:
            array = read_idx(path)
            assert array.dtype == np.uint8
            if data[:2] != b"\x1f\x8b":
                sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
                assert list(array.shape) == sizes
                assert array.tobytes() == data[4 + 4 * data[3] :]

        return load


def toml(root: Path) -> Callable[[random.Random], Case]:
    """Configurations."""
    experiment = Experiment(
        "seq-cifar10", sparsity=0.9, prunable=("layer*",), method_options={"alpha": 0.2}, threads=2, lr=0.1, epochs=3
    )
    text = experiment.to_toml()

    def case(rng: random.Random) -> Case:
        path = root / "case.toml"
        if rng.random() < 0.5:
            path.write_bytes(mutate(text.encode(), rng))
        else:
            values = json.loads(json.dumps(dataclasses.asdict(experiment)))
            kept = {k: v for k, v in mutate_json(values, rng).items() if isinstance(v, str | int | float | list)}
            path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in kept.items()))

        def load() -> None:
            loaded = Experiment.from_dict(read_toml(path), str(path)).resolve()
            path.write_text(loaded.to_toml())
            assert Experiment.from_dict(read_toml(path), str(path)) == loaded, "it is not written as it was read"

        return load

    return case
