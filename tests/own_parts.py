"""Parts of a user's own, as a module in the folder where a command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAME = "mine"
CODE = '''
import math

import torch
from torch import nn

from sparcl import methods, streams
from sparcl.sparsity.drop_grow import DropGrow

made = []


def make(classes, input_shape, width=8):
    layers = [nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def ten(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))


class Mine(methods.ER):
    name = "own-er"

    def __init__(self, buffer_size: int = 200, *, times: int = 1, weight: float = 1.0) -> None:
        super().__init__(buffer_size)
        made.append((buffer_size, times, weight))


class Nameless(methods.Method):
    def loss(self, batch):
        raise NotImplementedError


class Plain(methods.Finetune):
    """No buffer, no options."""

    name = "own-plain"


class Hubs(DropGrow):
    name = "hubs"

    def __init__(self, sparsity: float = 0.90, *, fraction: float = 0.3) -> None:
        super().__init__(sparsity, fraction=fraction, stop=1.0)
        made.append((sparsity, fraction))

    def interval(self):
        return self.steps

    def grow_scores(self):
        return [torch.rand(math.prod(layer.shape), generator=self.generator) for layer in self.layers]


def digits(classes_per_task=5, limit_per_class=None):
    return streams.seq_digits(classes_per_task=classes_per_task, limit_per_class=limit_per_class)


def rows(limit_per_class=None):
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    return streams.from_arrays(x, torch.arange(80) % 4, x, torch.arange(80) % 4)


def per_task():
    from dataclasses import replace

    stream = streams.seq_digits(limit_per_class=5)
    other = streams.Transform(streams.Normalize((0.5,), (2.0,)))
    return replace(stream, tasks=(*stream.tasks[:4], replace(stream.tasks[4], transform=other)))


def rms(parameters, lr=0.01, weight_decay=0.0, alpha=0.9):
    return torch.optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay, alpha=alpha)


def roll(batch, generator):
    return batch.roll(int(torch.randint(0, 3, (1,), generator=generator)), -1)


def shrink(batch, generator):
    return batch[:, :, 1:]


def falling(share):
    return 1 - share / 2


def broken(*args, **options):
    raise ValueError("it is\\nbroken")


def nothing(*args, **options):
    return None


number = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the module `mine` in it; forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(CODE)
    (folder / "mine_broken.py").write_text("import no_such_package_anywhere\n")
    (folder / "mine_raises.py").write_text("1 / 0\n")
    monkeypatch.chdir(folder)
    with forgotten(NAME, "mine_broken", "mine_raises"):
        yield folder


@contextmanager
def forgotten(*modules: str) -> Iterator[None]:
    """What is imported of these modules in here, and where it was looked for, is afterwards as if it never was."""
    before, sys.path[:] = list(sys.path), [place for place in sys.path if place]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in [n for n in sys.modules if n.partition(".")[0] in modules]:
            del sys.modules[name]
