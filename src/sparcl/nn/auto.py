"""Which backend computes a model, and under `auto` which of its layers: measured once.

Legend: N batch, O output channels, P positions of one output channel, G channels a block.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparcl import kernels
from sparcl.errors import ConfigError, one_line, unknown
from sparcl.kernels.layout import to_batch_last
from sparcl.nn import choices
from sparcl.nn.compact import CompactLayer, batch_last_layer, compact_layer, has_kernel
from sparcl.nn.layers import Prunable, is_watched, prunable_names

BACKENDS = ("auto", "native", "reference")

MARGIN = 1.25
"""Dense is chosen where it is faster by this factor: a choice near the break-even point would follow the noise."""
CLEAR = 1.5
"""A layer whose sides are farther than this factor from the break-even point is not timed again."""

REPEATS = 5
MOST_SAMPLES = 256
"""A layer is timed on no larger batch: the choice is the same, and a batch size may stand for "all there are"."""
ENOUGH = 1e8
"""Multiply-adds of a timed dense forward pass: the batch of a large layer is cut, to no fewer than `LEAST_SAMPLES`."""
LEAST_SAMPLES = 16
NOMINAL_SIDE = 16
"""Rows and columns of a convolution's input, and steps of a series', where the model's input shape is not known."""

TOLD_AFTER = 1.0
"""Seconds after which measuring is told of."""

Tell = Callable[[str, dict[str, Any]], None]


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
    tell: Tell | None = None,
) -> dict[str, str]:
    """Time a forward and backward pass of each prunable layer both ways; "native" or "dense" by name.

    Layers of one geometry and density are timed once, and not again on this machine (`nn/choices.py`).

    Args:
        model: the dense model, unchanged by this.
        densities: share of each prunable layer's weights that will be active, given the shapes of all.
        block: G, output channels that share their positions (1: unstructured).
        batch: N; `MOST_SAMPLES` at most are timed.
        input_shape: of one sample; without it a convolution is timed on `NOMINAL_SIDE` rows and columns.
        tell: where it takes more than `TOLD_AFTER` seconds, told from then on before each layer: `auto.measure`, with
            `layer` (name), `done` and `of` (kinds of layers) and `seconds` so far.
    """
    shapes = {name: _shape(model.get_submodule(name)) for name in prunable_names(model, prunable)}
    density = dict(zip(shapes, densities(list(shapes.values())), strict=True))
    modules = {name: model.get_submodule(name) for name in shapes}
    names = [name for name, module in modules.items() if has_kernel(module) and not is_watched(module)]
    seen = {} if input_shape is None else _inputs(model, names, input_shape)
    cases = {name: _case(modules[name], density[name], block, batch, seen.get(name)) for name in names}
    alike = {repr(case): (name, case) for name, case in reversed(cases.items())}  # the first name of each
    choice = choices.known({kind: kind for kind in alike})
    left = [kind for kind in reversed(alike) if kind not in choice]
    start = time.perf_counter()
    for done, kind in enumerate(left):
        name, case = alike[kind]
        if (seconds := time.perf_counter() - start) > TOLD_AFTER and tell is not None:
            tell("auto.measure", {"layer": name, "done": done, "of": len(left), "seconds": seconds})
        choice[kind] = _faster(modules[name], case)
    if left:
        choices.remember({kind: choice[kind] for kind in left})
    return {name: choice[repr(case)] for name, case in cases.items()}


@dataclass(frozen=True)
class _Case:
    """All that a layer's time depends on, whose name is its `repr`.

    Attributes:
        layer: its kind and geometry, as PyTorch tells them.
        block: output channels that share positions, where they are many enough.
        x: shape of the timed input, [N, ...].
    """

    layer: str
    density: float
    block: int
    x: tuple[int, ...]


def _case(layer: nn.Module, density: float, block: int, batch: int, seen: tuple[int, ...] | None) -> _Case:
    """`seen`: the shape of one sample of the layer's input."""
    shape = _shape(layer)
    block = block if shape[0] % block == 0 else 1
    batch = min(batch, MOST_SAMPLES)
    if isinstance(layer, nn.Linear):
        rows = 1 if seen is None else math.prod(seen[:-1])
        return _Case(repr(layer), density, block, (min(batch * rows, MOST_SAMPLES), layer.in_features))
    geometry = cast(nn.Conv1d | nn.Conv2d, layer)
    sides = (NOMINAL_SIDE,) * (len(shape) - 2) if seen is None else seen[1:]
    positions = math.prod(-(-side // stride) for side, stride in zip(sides, geometry.stride, strict=True))
    enough = int(ENOUGH / (math.prod(shape) * positions)) // LEAST_SAMPLES * LEAST_SAMPLES
    batch = min(batch, max(enough, LEAST_SAMPLES))
    return _Case(repr(layer), density, block, (batch, geometry.in_channels, *sides))


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of the dense weight, also where the layer is compact already."""
    return layer.shape if isinstance(layer, CompactLayer) else tuple(cast(Tensor, layer.weight).shape)


def _faster(layer: nn.Module, case: _Case) -> str:
    generator = torch.Generator().manual_seed(0)
    layer = copy.deepcopy(layer).requires_grad_()
    compact, dense = compact_layer(layer), batch_last_layer(layer) or layer
    x = torch.randn(case.x, generator=generator)
    x = (x if isinstance(layer, nn.Linear) else to_batch_last(x)).requires_grad_()
    units = _drawn(compact.shape[0] // case.block, math.prod(compact.shape[1:]), case.density, generator)
    compact.set_index(units.repeat_interleave(case.block, dim=0).view(-1).nonzero().squeeze(1))
    _seconds(compact, x)  # its plan is made, memory is there
    native = min(_seconds(compact, x), _seconds(compact, x))
    with torch.no_grad():  # where the dense forward pass alone shows it, the way back is not asked
        forward = min(_seconds(dense, x), _seconds(dense, x))
    if MARGIN * forward > native:
        return "native"
    _seconds(dense, x)
    other = _seconds(dense, x)
    for _ in range(REPEATS - 1):
        if not 1 / CLEAR < MARGIN * other / native < CLEAR:
            break
        native, other = min(native, _seconds(compact, x)), min(other, _seconds(dense, x))
    return "dense" if MARGIN * other < native else "native"


def _drawn(rows: int, columns: int, density: float, generator: torch.Generator) -> Tensor:
    """Bool [rows, columns] with so many active units as a sparsifier makes; a tenth of the time of a permutation."""
    units = torch.rand(rows * columns, generator=generator) < density
    surplus = int(units.sum()) - max(1, round(density * units.numel()))
    others = (units if surplus > 0 else ~units).nonzero().squeeze(1)
    units[others[torch.linspace(0, max(len(others) - 1, 0), abs(surplus)).long()]] = surplus < 0
    return units.view(rows, columns)


def _seconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """A forward pass, and one back where gradients are asked for: of one thread its own time, whatever others do."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    y = layer(x)
    if y.requires_grad:
        y.backward(y.detach())  # type: ignore[no-untyped-call]
    return clock() - start


@torch.no_grad()
def _inputs(model: nn.Module, names: list[str], input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of each layer the shape of one sample of its input, by a forward pass of zeros that leaves no trace."""
    seen: dict[str, tuple[int, ...]] = {}
    try:
        model = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError, AttributeError):  # a computed weight, as under `weight_norm`; a lock, an open file
        return seen

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            seen[name] = tuple(inputs[0].shape[1:])

        return see

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(note(name))
    try:
        model(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"the model does not take the input shape {list(input_shape)}: {one_line(error)}") from error
    return seen
