"""Micro-batches: few samples pass at a time, and none of their activations is kept.

A forward pass answers a batch part by part, without a graph. On the way back each part passes forward once more, with
one, and takes back its share of the gradient at the logits (Chen et al., 2016, "Training Deep Nets with Sublinear
Memory Cost", the whole network as one segment). So a method's loss sees all logits of its batches, as ever, and no
method knows of it. Only a BatchNorm does: its statistics are those of a part.

Legend: N samples of a forward pass, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.errors import ConfigError
from sparcl.learner.alone import first_norm
from sparcl.learner.refusals import TRAINING, check_logits
from sparcl.methods.method import Method
from sparcl.sparsity.importance import preserved_buffers
from sparcl.whole import is_whole

Run = Callable[[Tensor], Tensor]

MICRO_BATCH = "micro_batch"
"""Of a checkpoint's settings, where there is one."""


def check(size: int | None, batch_size: int, method: type[Method]) -> int | None:
    """The size, as Python's own number; None: passes are not made in parts.

    Raises:
        ConfigError: passes of that method cannot be made in parts of so many samples.
    """
    if size is None:
        return None
    if not is_whole(size, 1, batch_size):
        raise ConfigError(f"micro-batch {size!r:.40} is not allowed; use 1 to the batch size, {batch_size}")
    if not method.passes_in_parts:
        raise ConfigError(
            f"method {method.name} passes through weights that are not the model's own, and cannot do so in"
            " micro-batches: leave them out, or use a smaller batch size"
        )
    return int(size)


class MicroBatches:
    """Forward passes of a model in parts.

    Args:
        model: what is trained, called as a whole.
        size: samples that pass at a time, at most, but that none passes a BatchNorm alone.
        tell: told `step.recomputed` of the `samples` that have passed forward once more.
    """

    def __init__(self, model: nn.Module, size: int, tell: Callable[[str, dict[str, int]], None]) -> None:
        self.model, self.size, self.tell = model, size, tell
        self.least = 1 if first_norm(model) is None else 2
        self._made = 0

    def check_passed(self) -> None:
        """Raise ConfigError if no pass of the last `applied` was made in parts: what passed were parts of the model."""
        if not self._made:
            raise ConfigError("the method's loss calls parts of the model: micro-batches need calls of the whole model")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Passes of the model in here are made in parts. Its hooks see them whole, and once."""
        own: Run = self.model.forward
        before, self._made = vars(self.model).get("forward"), 0
        weights = [p for p in self.model.parameters() if p.requires_grad]

        def forward(inputs: Tensor) -> Tensor:
            self._made += 1
            logits: Tensor = _InParts.apply(self, own, inputs, *weights)  # type: ignore[no-untyped-call]
            return logits

        vars(self.model)["forward"] = forward
        try:
            yield
        finally:
            del vars(self.model)["forward"]
            if before is not None:
                vars(self.model)["forward"] = before

    def parts(self, samples: int) -> list[slice]:
        """Every k-th sample each, so that new and remembered ones that pass together are in every part."""
        count = max(1, min(-(-samples // self.size), samples // self.least))
        return [slice(first, None, count) for first in range(count)]


class _InParts(torch.autograd.Function):
    """The logits [N, C] of inputs [N, ...], a function of the weights as well."""

    @staticmethod
    def forward(ctx: Any, micro: MicroBatches, run: Run, inputs: Tensor, *weights: Tensor) -> Tensor:
        ctx.micro, ctx.run, ctx.drawn = micro, run, []
        ctx.save_for_backward(inputs, *weights)
        logits: Tensor | None = None
        for part in micro.parts(len(inputs)):
            ctx.drawn.append(seeds.global_state(inputs.device))  # a dropout draws the same again
            answer = check_logits(run(own := inputs[part].clone()), len(own), TRAINING)  # the model may work in place
            logits = answer.new_empty(len(inputs), *answer.shape[1:]) if logits is None else logits
            logits[part] = answer
        assert logits is not None
        return logits

    @staticmethod
    def backward(ctx: Any, *at_logits: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *weights = ctx.saved_tensors
        micro, (gradient,) = ctx.micro, at_logits
        wanted = [w for w, asked in zip(weights, ctx.needs_input_grad[3:], strict=True) if asked]
        total: list[Tensor | None] = [None] * len(wanted)
        of_inputs = torch.zeros_like(inputs) if ctx.needs_input_grad[2] else None
        with preserved_buffers(micro.model), seeds.given_back(inputs.device), torch.enable_grad():
            for part, drawn in zip(micro.parts(len(inputs)), ctx.drawn, strict=True):
                seeds.set_global_state(drawn, inputs.device)
                own = inputs[part].detach().requires_grad_(of_inputs is not None)
                asked = wanted if of_inputs is None else [*wanted, own]
                found = torch.autograd.grad(ctx.run(own.clone()), asked, gradient[part].contiguous(), allow_unused=True)
                if of_inputs is not None and found[-1] is not None:
                    of_inputs[part] = found[-1]
                total = [_sum(*pair) for pair in zip(total, found, strict=False)]
        micro.tell("step.recomputed", {"samples": len(inputs)})
        gradients = iter(total)
        return (None, None, of_inputs, *(next(gradients) if asked else None for asked in ctx.needs_input_grad[3:]))


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more  # not in place: two weights that are added have one tensor for their gradients
