"""Who computes the model: the choice of backend, and the conversion before the optimizer takes its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparcl.errors import ConfigError
from sparcl.nn import auto, convert, in_halves
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
        prunable_names(model, sparsifier.prunable)  # a model that is refused stays what it was
        if backend == "auto" and not choice:
            densities, block = sparsifier.densities, sparsifier.pattern.block
            choice = auto.measure(model, sparsifier.prunable, densities, block, batch_size, input_shape, tell)
        convert.to_native(model, sparsifier.prunable, choice)
    return chosen, choice
