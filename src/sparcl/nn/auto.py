"""Which backend computes a model, and under `auto` which of its layers: measured once, at conversion.

Legend: N batch, O output channels, P positions of one output channel, G channels a block.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparcl import kernels
from sparcl.errors import ConfigError, unknown
from sparcl.kernels.layout import to_batch_last
from sparcl.nn.compact import BatchLastConv2d, CompactConv2d, CompactLayer, CompactLinear, has_kernel
from sparcl.nn.layers import Prunable, is_watched, prunable_names

BACKENDS = ("auto", "native", "reference")

MARGIN = 1.25
"""Dense is chosen where it is faster by this factor: a choice near the break-even point would follow the noise."""

REPEATS = 5
MOST_SAMPLES = 256
"""A layer is timed on no larger batch: the choice is the same, and a batch size may stand for "all there are"."""
NOMINAL_SIDE = 16
"""Rows and columns of a convolution's input where the model's input shape is not known."""


def select_backend(backend: str, model: nn.Module, device: torch.device, *, prunes: bool) -> str:
    """`native` or `reference`, for a backend that may be `auto`.

    Raises:
        ConfigError: an unknown name, native where it cannot run, or a model that is compact where that would not show.
    """
    if backend not in BACKENDS:
        raise ConfigError(unknown("backend", backend, BACKENDS))
    if (backend == "reference" or not prunes) and any(isinstance(m, CompactLayer) for m in model.modules()):
        raise ConfigError(
            "the model is compact already: use backend native and a sparsifier, or a model as it was before"
        )
    if backend == "native" and not kernels.available():
        raise ConfigError(f"backend native is not available: {kernels.why_unavailable()}; use backend reference")
    if backend == "native" and device.type != "cpu":
        raise ConfigError(f"backend native is for the CPU; on {device} use backend reference or auto")
    if backend == "native" and _is_compiled(model):
        raise ConfigError("backend native computes its layers itself: give it the model without torch.compile")
    if backend == "auto":
        fits = device.type == "cpu" and all(p.dtype == torch.float32 for p in model.parameters())
        fits = fits and not _is_compiled(model)
        return "native" if prunes and fits and kernels.available() else "reference"
    return backend


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile is around the model or a part of it, or its `compile()` was called."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def measure(
    model: nn.Module,
    prunable: Prunable,
    densities: Callable[[Sequence[tuple[int, ...]]], list[float]],
    block: int,
    batch: int,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, str]:
    """Time a forward and backward pass of each prunable layer both ways; "native" or "dense" by name.

    Args:
        model: the dense model, unchanged by this.
        densities: share of each prunable layer's weights that will be active, given the shapes of all.
        block: G, output channels that share their positions (1: unstructured).
        batch: N; `MOST_SAMPLES` at most are timed.
        input_shape: of one sample; without it a convolution is timed on `NOMINAL_SIDE` rows and columns.
    """
    shapes = {name: _shape(model.get_submodule(name)) for name in prunable_names(model, prunable)}
    density = dict(zip(shapes, densities(list(shapes.values())), strict=True))
    modules = {name: model.get_submodule(name) for name in shapes}
    names = [name for name, module in modules.items() if has_kernel(module) and not is_watched(module)]
    sides = {} if input_shape is None else _input_sides(model, names, input_shape)
    known: dict[tuple[Any, ...], str] = {}  # layers of the same geometry and density are timed once
    choice = {}
    for name in names:
        layer, side = modules[name], sides.get(name, (NOMINAL_SIDE, NOMINAL_SIDE))
        alike = (repr(layer), side, density[name])
        if alike not in known:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            known[alike] = _faster(layer, density[name], block, min(batch, MOST_SAMPLES), side)
        choice[name] = known[alike]
    return choice


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of the dense weight, also where the layer is compact already."""
    return layer.shape if isinstance(layer, CompactLayer) else tuple(cast(Tensor, layer.weight).shape)


def _faster(layer: nn.Conv2d | nn.Linear, density: float, block: int, batch: int, side: tuple[int, ...]) -> str:
    generator = torch.Generator().manual_seed(0)
    layer = copy.deepcopy(layer).requires_grad_()
    compact: CompactLayer
    dense: nn.Module
    if isinstance(layer, nn.Conv2d):
        compact, dense = CompactConv2d(layer), BatchLastConv2d.of(layer)
        x = to_batch_last(torch.randn(batch, layer.in_channels, *side, generator=generator))
    else:
        compact, dense = CompactLinear(layer), layer
        x = torch.randn(batch, layer.in_features, generator=generator)
    block = block if compact.shape[0] % block == 0 else 1
    units = torch.zeros(compact.shape[0] // block, math.prod(compact.shape[1:]), dtype=torch.bool)  # [O / G, P]
    active = torch.randperm(units.numel(), generator=generator)[: max(1, round(density * units.numel()))]
    units.view(-1)[active] = True
    compact.set_index(units.repeat_interleave(block, dim=0).view(-1).nonzero().squeeze(1))
    return "dense" if MARGIN * _seconds(dense, x) < _seconds(compact, x) else "native"


def _seconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest of a few forward and backward passes."""
    x = x.detach().requires_grad_()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        y = layer(x)
        y.backward(y.detach())  # type: ignore[no-untyped-call]
        best = min(best, time.perf_counter() - start)
    return best


@torch.no_grad()
def _input_sides(model: nn.Module, names: list[str], input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Rows and columns of what goes into each convolution, by a forward pass of zeros that leaves no trace."""
    sides: dict[str, tuple[int, ...]] = {}
    try:
        model = copy.deepcopy(model).eval()
    except RuntimeError:  # PyTorch copies no tensor that was computed, which is what a weight is under `weight_norm`
        return sides

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            sides[name] = tuple(inputs[0].shape[2:])

        return see

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(note(name))
    model(torch.zeros(1, *input_shape))
    return sides
