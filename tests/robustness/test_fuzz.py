"""A short, deterministic part of the fuzzing; ten thousand cases with `make fuzz`. And what a hostile pickle gets."""

from __future__ import annotations

import os
import pickle
import random
from functools import partial
from pathlib import Path

import bombs
import fuzzing
import mutated
import pytest
import torch

import sparcl
from sparcl import streams
from sparcl.checkpoint import files
from sparcl.errors import SparclError
from sparcl.run.toml import read_toml
from sparcl.streams.idx import read_idx


def test_mutated_files_are_refused_or_loaded_correctly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARCL_CACHE", "/dev/null/no-cache")
    found = fuzzing.fuzz(300, seed=7, root=tmp_path)
    assert sum(found.values()) == 300
    kinds = {kind for kind, _ in found}
    assert len(kinds) == 9
    assert all(found[kind, "refused"] for kind in kinds)
    assert sum(found[kind, "loaded"] for kind in kinds) > 10


@pytest.mark.parametrize("kind", ["pickled", "pictures", "headers", "network"])
def test_a_bomb_is_refused_soon_and_without_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("SPARCL_CACHE", "/dev/null/no-cache")
    made = bombs.Bombs(tmp_path, mutated.Data(tmp_path), mutated.Checkpoints(tmp_path))
    for seed in range(3):
        load = getattr(made, kind)(random.Random(seed))
        with pytest.raises(SparclError) as caught, fuzzing.limited():
            load()
        assert not fuzzing.ran_out(caught.value)


def test_an_allocation_that_our_own_limit_stopped_is_no_refusal() -> None:
    refusal = SparclError("damaged")
    refusal.__cause__ = MemoryError()
    assert fuzzing.ran_out(refusal)
    assert not fuzzing.ran_out(SparclError("damaged"))


def test_a_wrong_load_would_be_seen(tmp_path: Path) -> None:
    checkpoints = mutated.Checkpoints(tmp_path)
    load = checkpoints.raw(random.Random(0))
    checkpoints.state["settings"]["epochs"] = 99
    (tmp_path / "case").rename(tmp_path / "mutated")
    checkpoints.copy()
    with pytest.raises(AssertionError, match="another state"):
        load()


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_executes_nothing_wherever_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "executed"
    hostile = [pickle.dumps(Bomb(mark), protocol) for protocol in (0, 2, 4)]
    torch.save({"model": Bomb(mark)}, tmp_path / "bomb.pt")
    hostile.append((tmp_path / "bomb.pt").read_bytes())
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    data = mutated.Data(tmp_path)
    good = mutated.Checkpoints(tmp_path).good
    for bomb in hostile:
        for name in (files.MANIFEST, files.STATE, files.TENSORS):
            kept = (good / name).read_bytes()
            (good / name).write_bytes(bomb)
            with pytest.raises(SparclError):
                sparcl.Learner.load(good)
            (good / name).write_bytes(kept)
        place = tmp_path / "bomb"
        place.write_bytes(bomb)
        members = {**data.cifar, "cifar-10-batches-py/data_batch_1": bomb}
        mutated.write_tar(tmp_path / "cifar.tar", members, "w")
        images = mutated.write_folder(tmp_path / "images", {**data.images, "train/c000/0.png": bomb})
        for read, argument in (
            (read_idx, place),
            (read_toml, place),
            (partial(streams.load, "folder"), images),
            (partial(streams.load, "seq-cifar10"), place),
            (partial(streams.load, "seq-cifar10"), tmp_path / "cifar.tar"),
        ):
            with pytest.raises(SparclError):
                read(argument)
    assert not mark.exists()
