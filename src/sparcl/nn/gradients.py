"""The gradient at every weight of a sparse layer, active or not: what RigL and SNIP rank.

Legend: M positions of the dense weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparcl.nn.layers import SparseLayer

Calls = list[tuple[Tensor, Tensor]]
"""Input and output of a layer, each time it was called."""


def dense_gradients(
    model: nn.Module, layers: Sequence[SparseLayer], loss: Callable[[], Tensor]
) -> tuple[list[Tensor], int]:
    """Gradient of `loss()` at all M positions of each layer, and how many samples the model saw for it.

    A compact layer has no dense weight, so each layer puts its gradient together from what went in and from the
    gradient of what came out (`SparseLayer.dense_gradient`). Parameters' `.grad` stays as it is.

    Returns:
        Float [M] a layer, and the number of samples over all forward passes.
    """
    calls: list[Calls] = [[] for _ in layers]
    samples: list[int] = []
    hooks = [model.register_forward_pre_hook(lambda _, inputs: samples.append(len(inputs[0])))]
    parts = dict(model.named_modules(remove_duplicate=False))  # a part of a model lacks the layers that it never calls
    for layer, into in zip(layers, calls, strict=True):
        if layer.name in parts:
            hooks.append(parts[layer.name].register_forward_hook(_note(into)))
    try:
        value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [output for per_layer in calls for _, output in per_layer]
    at_outputs = iter(torch.autograd.grad(value, outputs, allow_unused=True) if outputs else ())  # none was called
    gradients = []
    for layer, per_layer in zip(layers, calls, strict=True):
        total = torch.zeros(math.prod(layer.shape), device=layer.parameter.device)
        for inputs, _ in per_layer:
            at_output = next(at_outputs)
            if at_output is not None:
                total += layer.dense_gradient(inputs, at_output).reshape(-1)
        gradients.append(total)
    return gradients, sum(samples)


def _note(into: Calls) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del module
        into.append((inputs[0].detach(), output))
        return output.clone()  # a ReLU in place would make the noted output its own result

    return note
