"""How a stream is trained on where nothing else is said: its model and its epochs."""

from __future__ import annotations

from dataclasses import dataclass

from sparcl.nn import AUTO


@dataclass(frozen=True)
class Protocol:
    """How a stream is trained on by default: model and epochs (batch 32 everywhere)."""

    model: str
    epochs: int


PROTOCOLS = {
    "seq-digits": Protocol("convnet", 10),
    "seq-mnist": Protocol("mlp", 1),
    "seq-fashion-mnist": Protocol("mlp", 1),
    "seq-cifar10": Protocol("resnet18", 50),
    "seq-cifar100": Protocol("resnet18", 50),
    "seq-tinyimg": Protocol("resnet18", 100),
    "folder": Protocol("resnet18", 50),
}
"""Published for seq-cifar10 and seq-tinyimg (SparCL, NeurIPS 2022), as the field does for MNIST; ours for the rest."""

OF_OWN = Protocol(AUTO, 50)
"""Of a stream of the user's own: as for a folder, but the model goes by the shape of a sample."""
