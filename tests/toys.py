"""Small models, streams, a Learner and a training loop of one's own, for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl import Learner
from sparcl.methods import DERpp
from sparcl.sparsity import Losses, SparCL, Sparsifier
from sparcl.streams import Stream, Transform, from_arrays


class Bag(nn.Module):
    """Layers without a forward pass; `loss` has the gradient `direction` at each weight, so CWI is known by hand."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(4, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.point = nn.Conv2d(3, 4, 1)
        self.linear = nn.Linear(7, 12)
        self.tiny = nn.Linear(2, 4)
        self.generator = torch.Generator().manual_seed(seed)
        self.directions: list[list[Tensor]] = []

    def weights(self) -> list[Tensor]:
        return [module.weight for module in self.children()]

    def loss(self) -> Tensor:
        directions = [torch.randn(w.shape, generator=self.generator) for w in self.weights()]
        self.directions.append(directions)
        return torch.stack([(w * d).sum() for w, d in zip(self.weights(), directions, strict=True)]).sum()


class Net(nn.Module):
    """A user's own model: stem, grouped convolution, convolution with bias, linear layer, classifier. [N, 2, 6, 6]."""

    def __init__(self, classes: int = 4, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.hidden = nn.Linear(8, 12)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.stem(x)))
        x = F.gelu(self.norm2(self.grouped(x)))
        x = F.gelu(self.conv(x)).mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(F.gelu(self.hidden(x))))
        return logits


PRUNABLE_OF_NET = ("grouped", "conv", "hidden")


def blobs(tasks: int = 2, per_class: int = 20, seed: int = 0, flip: bool = False) -> Stream:
    """Noisy pictures [2, 6, 6] of two classes a task, each class around a picture of its own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2 * tasks, 2, 6, 6, generator=generator)
    labels = torch.arange(2 * tasks).repeat(per_class)

    def draw() -> Tensor:
        return centres[labels] + 0.5 * torch.randn(len(labels), 2, 6, 6, generator=generator)

    transform = Transform(crop_padding=1, flip=True) if flip else None
    return from_arrays(draw(), labels, draw(), labels, transform=transform, name="blobs")


def own_loop(
    sparsifier: Sparsifier,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Sequence,
    *,
    epochs: int,
    batch_size: int = 10,
    each_step: Callable[[], None] = lambda: None,
) -> int:
    """A training loop without a Learner, as `sparsifier.py` documents it; returns the number of steps made."""
    generator = torch.Generator().manual_seed(1)
    steps = 0
    for task in stream:
        x, y = task.train.inputs, task.train.labels

        def fresh_batch(x: Tensor = x, y: Tensor = y) -> Tensor:
            ids = sparsifier.keep(torch.randperm(len(y), generator=generator))[:batch_size]
            return F.cross_entropy(model(x[ids]), y[ids])

        sparsifier.begin_task(task.index, samples=len(y), epochs=epochs, losses=Losses(task=fresh_batch))
        for epoch in range(epochs):
            order = sparsifier.keep(torch.randperm(len(y), generator=generator))
            batches = [b for b in order.split(batch_size) if len(b) == batch_size]
            sparsifier.begin_epoch(epoch, steps=len(batches))
            for step, ids in enumerate(batches):
                sparsifier.begin_step(step)
                logits = model(x[ids])
                sparsifier.after_forward(ids, logits, y[ids])
                optimizer.zero_grad()
                F.cross_entropy(logits, y[ids]).backward()
                sparsifier.after_backward()
                optimizer.step()
                sparsifier.after_step()
                each_step()
                steps += 1
        sparsifier.end_task()
    return steps


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01)


def make_learner(seed: int = 0, model: nn.Module | None = None, **options: Any) -> Learner:
    """A Learner with everything that draws in it: augmentation, dropout, buffer, masks, removal, order."""
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "optimizer": adam, "backend": "reference"} | options
    settings.setdefault("method", DERpp(12))
    settings.setdefault("sparsifier", SparCL(0.7))
    return Learner(model or Net(dropout=0.2), seed=seed, **settings)
