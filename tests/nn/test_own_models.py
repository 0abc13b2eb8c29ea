"""Kinds of networks that people bring: each learns under SparCL where it can, else one line says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nn.native import needs_native
from torch import Tensor, nn

from sparcl import Learner, methods, streams
from sparcl.errors import ConfigError
from sparcl.sparsity import SparCL


class Squeeze(nn.Module):
    """As in MobileNetV3: channels are weighed by what they hold on the whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Expand, depthwise, squeeze, project, with the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand, self.norm1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm2, self.squeeze = nn.BatchNorm2d(wide), Squeeze(wide)
        self.project, self.norm3 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm1(self.expand(x)))
        y = self.squeeze(F.hardswish(self.norm2(self.depthwise(y))))
        return x + self.norm3(self.project(y))


def mobile() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
    return nn.Sequential(stem, Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Patches(nn.Module):
    """A small vision transformer of PyTorch's own layers; asks for a value, so that no trace goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ValueError("odd pixels")
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


class Recurrent(nn.Module):
    """Linear, GRU, linear, classifier: two of the four can be pruned at most, and the first and last are not."""

    def __init__(self, hidden: bool = True) -> None:
        super().__init__()
        self.embed, self.gru = nn.Linear(3, 8), nn.GRU(8, 8, batch_first=True)
        self.hidden = nn.Linear(8, 8) if hidden else nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(F.relu(self.embed(x)))
        logits: Tensor = self.head(F.relu(self.hidden(states[:, -1])))
        return logits


NETWORKS: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "mobile": (
        mobile,
        (3, 12, 12),
        [f"{block}.{name}" for block in (1, 2) for name in ("expand", "squeeze.reduce", "squeeze.expand", "project")],
    ),
    "transformer": (
        Patches,
        (3, 12, 12),
        [f"blocks.{block}.{name}" for block in (0, 1) for name in ("self_attn.out_proj", "linear1", "linear2")],
    ),
    "recurrent": (Recurrent, (10, 3), ["hidden"]),
}


@needs_native
@pytest.mark.parametrize("which", NETWORKS)
def test_it_learns_alike_on_both_backends_is_saved_and_goes_on(which: str, tmp_path: Path) -> None:
    make, shape, pruned = NETWORKS[which]
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(32, *shape, generator=generator), torch.arange(32) % 4
    stream = streams.from_arrays(x, labels, x, labels, classes_per_task=2)
    made = {}
    for backend in ("reference", "native"):
        torch.manual_seed(0)
        made[backend] = Learner(
            make(), methods.DERpp(8), SparCL(0.75), batch_size=8, epochs=2, lr=0.01, backend=backend, input_shape=shape
        )
        made[backend].learn(stream[0])
        assert [layer.name for layer in made[backend].sparsifier.layers] == pruned
    one, other = made["reference"], made["native"]
    for a, b in zip(one.sparsifier.layers, other.sparsifier.layers, strict=True):
        assert len(a.index) == len(b.index) < torch.Size(a.shape).numel()
    outputs = one.dense_model()(x), other.dense_model()(x)
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-2 * outputs[0].abs().max()
    other.save(tmp_path / "saved")
    again = Learner.load(tmp_path / "saved", make(), backend="reference")
    again.learn(stream[1])
    assert len(again.predict(x).labels) == 32


def test_a_network_of_a_gru_alone_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no prunable layer: it needs a Conv1d, .*not prunable: GRU\)") as refused:
        Learner(Recurrent(hidden=False), sparsifier=SparCL(0.75))
    assert "\n" not in str(refused.value)
