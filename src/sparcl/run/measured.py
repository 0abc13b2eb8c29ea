"""What result.json says of a finished run's network, and of where it ran."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch
from torch import nn

from sparcl import kernels
from sparcl.learner import Learner
from sparcl.nn.convert import backends
from sparcl.run import final
from sparcl.run.resume import computed_with


def sparsity(learner: Learner) -> dict[str, float | int]:
    """Sparsity reached: share of prunable weights that is zero, and that is not updated; and the counts."""
    layers = learner.sparsifier.layers
    prunable = sum(torch.Size(layer.shape).numel() for layer in layers)
    active = sum(len(layer.index) for layer in layers)
    chosen = sum(len(layer.index) if layer.chosen is None else int(layer.chosen.sum()) for layer in layers)
    own = {id(layer.parameter) for layer in layers}
    dense = sum(p.numel() for p in learner.model.parameters() if id(p) not in own)
    return {
        "weights": 1 - active / prunable if prunable else 0.0,
        "gradients": 1 - chosen / prunable if prunable else 0.0,
        "prunable": prunable,
        "total": prunable + dense,
    }


def model_sha256(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the dense state dict, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(final.dense_state(model).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def backend_used(learner: Learner) -> dict[str, Any]:
    """What really ran: the layers on each backend, and the instruction set of the native ones."""
    names = [layer.name for layer in learner.sparsifier.layers]
    isa = kernels.isa() if learner.backend == "native" else None
    return {"name": learner.backend, **backends(learner.model, names), "isa": isa}


def environment(device: torch.device) -> dict[str, Any]:
    """Where it ran."""
    return {
        **computed_with(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }
