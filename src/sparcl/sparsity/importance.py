"""How much a weight or a gradient matters: CWI and CGI (SparCL, NeurIPS 2022), as pure functions.

Legend: K active weights of a layer. w values, g_task = ∂L~(D_t)/∂w, g_replay = ∂L(M)/∂w, all [K].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparcl.nn.compact import CompactLayer
from sparcl.nn.layers import SparseLayer
from sparcl.nn.positions import below, kth_lowest


@dataclass(frozen=True)
class Losses:
    """A method's two losses, each on a fresh batch at every call.

    `task` is the single-head loss L~(D_t) of the present task; `replay` is L(M) on the rehearsal buffer and returns
    None while there is nothing to rehearse. `objective` is what the method trains on, the two in one; a loop of one's
    own may leave it out. `from_steps` says that the loop also asks `wants_gradients` at each step and hands the
    step's own gradients to `take_gradients`: who ranks by those then calls neither.
    """

    task: Callable[[], Tensor]
    replay: Callable[[], Tensor | None] = lambda: None
    objective: Callable[[], Tensor] | None = None
    from_steps: bool = False

    def total(self) -> Tensor:
        """The objective or, where it is not given, L~(D_t) + L(M)."""
        if self.objective is not None:
            return self.objective()
        task, replay = self.task(), self.replay()
        return task if replay is None else task + replay


def cwi(w: Tensor, g_task: Tensor, g_replay: Tensor, alpha: float, beta: float) -> Tensor:
    """Continual weight importance, |w| + α·|∂L~(D_t)/∂w| + β·|∂L(M)/∂w| (SparCL, eq. 1)."""
    return w.abs() + cgi(g_task, g_replay, alpha, beta)


def cgi(g_task: Tensor, g_replay: Tensor, alpha: float, beta: float) -> Tensor:
    """Continual gradient importance, α·|∂L~(D_t)/∂w| + β·|∂L(M)/∂w| (SparCL, eq. 3)."""
    return alpha * g_task.abs() + beta * g_replay.abs()


def importance_gradients(
    model: nn.Module, layers: Sequence[SparseLayer], loss: Callable[[], Tensor | None], batches: int
) -> list[Tensor]:
    """Mean gradient over `batches` fresh batches at the active weights, [K] a layer; zeros where there is no loss.

    Parameters' `.grad` and the model's running statistics stay as they are.
    """
    parameters = [layer.parameter for layer in layers]
    total = [torch.zeros(len(layer.index), device=layer.parameter.device) for layer in layers]
    with preserved_buffers(model):
        for _ in range(batches):
            value = loss()
            if value is None:
                return total
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for into, layer, gradient in zip(total, layers, gradients, strict=True):
                if gradient is not None:
                    into.add_(layer.gather(gradient), alpha=1.0 / batches)
    return total


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Give the model's buffers (running statistics) back as they were; no pass changes a compact layer's positions."""
    positions = {id(module.weight_index) for module in model.modules() if isinstance(module, CompactLayer)}
    saved = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in positions]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def lowest(scores: Tensor, count: int, order: Tensor | None = None) -> Tensor:
    """Bool mask of exactly `count` lowest scores; among equals the first are taken (in `order`, a permutation of them),
    so every backend agrees.

    A score that is NaN counts as the highest: counts stay exact until the loss, NaN too by then, is refused.
    """
    if count <= 0:
        return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf)
    mask, ties = below(scores, kth_lowest(scores, count))
    if order is not None:
        tied = torch.zeros_like(mask)
        tied[ties] = True
        ties = order[tied[order]]
    mask[ties[: count - int(mask.sum())]] = True
    return mask
