"""Models that work in place: what they were given is still what it was, in the buffer and on the second pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import blobs

from sparcl import Learner, sparsity
from sparcl.methods import METHODS


def head(inplace: bool) -> nn.Sequential:
    """As torchvision's MobileNet and EfficientNet end: a Dropout in place before the classifier."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(front, nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


class First(nn.Module):
    """Its first layer works in place, or its first line does."""

    def __init__(self, inplace: bool, subtracts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop, self.a = nn.Dropout(0.5, inplace=inplace and not subtracts), nn.Linear(72, 16)
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 4)
        self.subtracts = inplace and subtracts
        self.offset = 0.5 if subtracts else 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.subtracts:
            x -= self.offset
        else:
            x = x - self.offset
        logits: Tensor = self.c(self.b(self.a(self.drop(x.flatten(1))).relu()).relu())
        return logits


@pytest.mark.parametrize("method", ["derpp", "der", "er"])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_latents_are_remembered_as_they_came(method: str, kind: str) -> None:
    held = []
    for inplace in (True, False):
        learner = Learner(head(inplace), METHODS[method](50), batch_size=8, freeze="0", latents=kind)
        learner.learn(blobs()[0])
        assert learner.method.buffer is not None
        held.append(learner.method.buffer.recall())
    assert torch.equal(*held)


@pytest.mark.parametrize("subtracts", [False, True])
@pytest.mark.parametrize("ranking", ["step", "fresh"])
def test_micro_batches_pass_twice_as_they_came(ranking: str, subtracts: bool) -> None:
    weights = []
    for inplace in (True, False):
        sparsifier = sparsity.SparCL(0.5, ranking=ranking)
        options = {"batch_size": 8, "micro_batch": 4, "backend": "reference"}
        learner = Learner(First(inplace, subtracts), METHODS["er"](50), sparsifier, **options)
        learner.learn(blobs()[0])
        weights.append(learner.model.c.weight.detach().clone())
    assert torch.equal(*weights)
