"""Who computes the model: the choice of backend, and the conversion before the optimizer takes its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from sparcl.errors import ConfigError
from sparcl.nn import auto, convert, in_halves
from sparcl.nn.compact import CompactLayer
from sparcl.nn.layers import prunable_names
from sparcl.sparsity.sparsifier import Sparsifier


def give_to_backend(
    model: nn.Module,
    sparsifier: Sparsifier,
    device: torch.device,
    backend: str,
    *,
    batch_size: int,
    layer_choice: Mapping[str, str],
    input_shape: tuple[int, ...] | None,
    tell: auto.Tell,
) -> tuple[str, dict[str, str]]:
    """Convert the model in place where it is to run native; the backend's name, and what `auto` chose by layer.

    Args and errors: see Learner.
    """
    if not isinstance(layer_choice, Mapping):
        raise ConfigError(f"layer choice {layer_choice!r:.40} is not allowed; use Learner.layer_choice of another")
    chosen, choice = auto.select_backend(backend, model, device, prunes=sparsifier.prunes), dict(layer_choice)
    if chosen != "native" and in_halves(model):
        raise ConfigError(
            f"activations bfloat16 are of backend native, not of {chosen}: use it, or activations float32"
        )
    if choice and (backend == "reference" or not sparsifier.prunes):  # under `auto` another machine may have chosen
        why = "backend reference" if sparsifier.prunes else f"sparsifier {sparsifier.name}, which prunes nothing"
        raise ConfigError(f"a layer choice has no effect with {why}: leave it out")
    if chosen == "native":
        names = prunable_names(model, sparsifier.prunable)  # a model that is refused stays what it was
        compact = _compact_already(model, names, choice)
        if backend == "auto" and not choice:
            densities, block = sparsifier.densities, sparsifier.pattern.block
            choice = auto.measure(model, sparsifier.prunable, densities, block, batch_size, input_shape, tell)
            choice |= dict.fromkeys(compact, "native")
        convert.to_native(model, sparsifier.prunable, choice)
    return chosen, choice


def _compact_already(model: nn.Module, names: list[str], choice: Mapping[str, str]) -> list[str]:
    """Those of the prunable layers `names` that an earlier Learner made compact; compact they stay.

    Raises:
        ConfigError: one that is sparse would not be pruned here, and no checkpoint would know where its weights are; or
            one is to be computed dense.
    """
    compact = {name: layer for name, layer in model.named_modules() if isinstance(layer, CompactLayer)}
    for name, layer in compact.items():
        if name not in names and len(layer.index) < math.prod(layer.shape):
            raise ConfigError(
                f"layer {name} is sparse already, but not to be pruned here: leave it prunable and trained, or use a"
                " model as it was before"
            )
        if choice.get(name) == "dense":
            raise ConfigError(f"layer {name} is compact already, and a layer choice of dense comes too late for it")
    return [name for name in compact if name in names]
