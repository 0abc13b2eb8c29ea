"""A small Learner and a stream for the tests of `Learner.observe`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from toys import adam, blobs

from sparcl import Learner, methods
from sparcl.nn import ConvNet
from sparcl.sparsity import Sparsifier
from sparcl.streams import single_pass

BORDERLESS = ("finetune", "er", "er-ace", "der", "derpp")


class Bare(nn.Module):
    """A network without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.hidden, self.head = nn.Linear(72, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.stem(x.flatten(1)).relu()).relu())
        return logits


def learner(method: methods.Method | None = None, sparsifier: Sparsifier | None = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    made = {"optimizer": adam, "backend": "reference", "batch_size": 8, "epochs": 1} | options
    return Learner(made.pop("model", None) or ConvNet(4, 2, 8), method or methods.DERpp(20), sparsifier, **made)


def batches(size: int = 8, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return single_pass(blobs(tasks=2, per_class=24, flip=True), size, **options)


CROPPED = blobs(tasks=1, flip=True)[0].transform
