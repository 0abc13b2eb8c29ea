"""Every sparsifier on every kind of layer and either backend: saved, loaded by both, gone on with to the same bits."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_saving import ACROSS
from torch import nn
from toys import blobs

import sparcl
from sparcl.checkpoint import files
from sparcl.methods import DERpp
from sparcl.nn import ConvNet
from sparcl.sparsity import DDR, DGM, SET, SNIP, TDM, RigL, Sparsifier, Static

SPARSIFIERS: dict[str, Callable[[], Sparsifier]] = {
    "dense": Sparsifier,
    "ddr": DDR,
    "dgm": lambda: DGM(interval=2),
    "tdm": lambda: TDM(0.5),
    "sparcl": lambda: sparcl.SparCL(0.5),
    "static": lambda: Static(0.5),
    "snip": lambda: SNIP(0.5),
    "set": lambda: SET(0.5),
    "rigl": lambda: RigL(0.5, every=2),
}


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def conv1d() -> nn.Module:
    first = (nn.Flatten(2), nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(*first, nn.Conv1d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))


MODELS: dict[str, Callable[[], nn.Module]] = {"conv": lambda: ConvNet(4, 2, 8), "linear": linear, "conv1d": conv1d}


def made(model: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[model]()


def load(folder: Path, model: str, backend: str) -> sparcl.Learner:
    """ConvNet is made again from the checkpoint; what is one's own is passed in, with other weights."""
    return sparcl.Learner.load(folder, None if model == "conv" else made(model, seed=7), backend=backend)


def same(one: Path, other: Path) -> bool:
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in (files.STATE, files.TENSORS))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
@pytest.mark.parametrize(("saves", "loads"), [*ACROSS, pytest.param("native", "native", marks=ACROSS[1].marks)])
def test_saved_loaded_and_gone_on_with(tmp_path: Path, saves: str, loads: str, sparsifier: str, model: str) -> None:
    stream = blobs(tasks=2, per_class=24)
    whole = sparcl.Learner(
        *(made(model), DERpp(20), SPARSIFIERS[sparsifier]()),
        epochs=1,
        batch_size=8,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
        backend=saves,
        checkpoint_dir=tmp_path / "all",
        checkpoint_every=8,
    )
    for task in stream:
        whole.learn(task)
    end = whole.save(tmp_path / "end")
    (middle,) = [folder for folder in (tmp_path / "all").iterdir() if folder.name == "step-8"]
    loaded = load(middle, model, loads)
    assert (loaded.position is not None, loaded.steps) == (True, 8)
    assert same(middle, loaded.save(tmp_path / "again"))
    for task in stream[loaded.learned :]:
        loaded.learn(task)
    if saves == loads:
        assert same(end, loaded.save(tmp_path / "went on"))
