"""One backward pass taken apart: the gradients of L~(D_t) and of L(M) out of a training step, for ranking.

The method's forward passes are cut at the logits. What it makes of them is differentiated as far as the cut; from there
the passes go back one after the other, and `.grad` is read in between. The sum is what one backward pass would give.

Legend: N samples of the task's batch, R remembered ones, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.nn.layers import SparseLayer
from sparcl.sparsity.sparsifier import Sparsifier

Tell = Callable[[str, dict[str, int]], None]


@dataclass
class Parts:
    """What a step's backward pass consists of, and what was read on the way."""

    layers: Sequence[SparseLayer]
    tell: Tell
    passes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Logits of each forward pass: as the model made them, and the leaf that the method was given."""
    task: list[Tensor] = field(default_factory=list)
    replay: list[Tensor] = field(default_factory=list)
    extra: int = 0
    """Samples that passed back for ranking alone."""
    repeated: int = 0
    """Samples that passed back once more as a step's own do, weight gradients of every layer included."""
    samples: int = 0
    """Samples that pass forward and back in this step."""
    cuts: bool = True
    """Whether forward passes are cut still: until the step's objective has gone back."""

    def backward(self, loss: Tensor, size: int, single_head: Callable[[Tensor], Tensor]) -> None:
        """As `loss.backward()`, and read the two gradients.

        Args:
            loss: the step's objective.
            size: N; these are the first samples of the first forward pass, and all others are remembered ones.
            single_head: L~ of logits [N, C].
        """
        if not self.passes:
            raise ConfigError(
                "the method's loss calls parts of the model: ranking by training steps needs calls of the whole model;"
                " use ranking 'fresh'"
            )
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        self.cuts = False
        (made, leaf), *others = self.passes
        at_logits = _gradient(leaf)
        with self._ranking():
            before = self._present()
            self._read_task(made, leaf, size, single_head)
            mixed = len(made) > size
            if mixed:
                self._pass_remembered(made, at_logits, size)
        for passed, its_leaf in others:
            passed.backward(_gradient(its_leaf))  # type: ignore[no-untyped-call]
        self._note(before, len(made) / (len(made) - size) if mixed else 1.0)
        if mixed:
            at_logits[size:] = 0.0  # has gone back
        made.backward(at_logits)  # type: ignore[no-untyped-call]
        self.passes = []

    def _read_task(self, made: Tensor, leaf: Tensor, size: int, single_head: Callable[[Tensor], Tensor]) -> None:
        """One pass back more: L~ is not what is trained on."""
        logits = leaf.detach()[:size].requires_grad_()
        at_logits = torch.zeros_like(leaf)
        at_logits[:size] = torch.autograd.grad(single_head(logits), logits)[0]
        parameters = [layer.parameter for layer in self.layers]
        gradients = torch.autograd.grad(made, parameters, at_logits, retain_graph=True, allow_unused=True)
        self.task = [_zeros(la) if g is None else la.gather(g) for la, g in zip(self.layers, gradients, strict=True)]
        self.extra += len(made)

    def _pass_remembered(self, made: Tensor, at_logits: Tensor, size: int) -> None:
        """Remembered samples in the task's own pass go back apart: one pass more. (Their loss there is a mean over all
        N + R samples, L(M) one over R.)
        """
        of_remembered = at_logits.clone()
        of_remembered[:size] = 0.0
        made.backward(of_remembered, retain_graph=True)  # type: ignore[no-untyped-call]
        self.repeated += len(made)

    def read_after(self, backward: Callable[[], None]) -> None:
        """L(M) where a method sends it back by itself, after its objective: `backward` adds to `.grad`."""
        before = self._present()
        backward()
        self._note(before, 1.0)

    def finish(self, sparsifier: Sparsifier) -> None:
        """Hand over what was read."""
        self.tell("importance.passed", {"extra": self.extra, "repeated": self.repeated, "samples": self.samples})
        sparsifier.take_gradients(self.task, self.replay, self.extra + self.repeated, self.samples)

    def _present(self) -> list[Tensor | None]:
        gradients = [layer.parameter.grad for layer in self.layers]
        return [None if g is None else la.gather(g) for la, g in zip(self.layers, gradients, strict=True)]

    def _note(self, before: Sequence[Tensor | None], scale: float) -> None:
        with self._ranking():
            self.replay = []
            self._note_changes(before, scale)

    def _note_changes(self, before: Sequence[Tensor | None], scale: float) -> None:
        for layer, old, now in zip(self.layers, before, self._present(), strict=True):
            change = _zeros(layer) if now is None else now if old is None else now - old
            self.replay.append(change if scale == 1.0 else change * scale)

    @contextmanager
    def _ranking(self) -> Iterator[None]:
        """What happens in here, the step would not do by itself."""
        self.tell("importance.begin", {})
        yield
        self.tell("importance.end", {})
        self.tell("importance.pause", {})


@contextmanager
def cut(model: nn.Module, parts: Parts | None) -> Iterator[None]:
    """Forward passes in here are cut at the model's logits, as long as `parts` says so; None: they are let alone."""
    if parts is None:
        yield
        return

    def cut_one(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        del module, inputs
        if not output.requires_grad:
            return None
        parts.samples += len(output)
        if not parts.cuts:
            return None
        leaf = output.detach().requires_grad_()
        parts.passes.append((output, leaf))
        return leaf

    hook = model.register_forward_hook(cut_one)
    try:
        yield
    finally:
        hook.remove()


def _gradient(leaf: Tensor) -> Tensor:
    """What reached a leaf; nothing, where the loss did not ask for it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _zeros(layer: SparseLayer) -> Tensor:
    return torch.zeros(len(layer.index), dtype=layer.parameter.dtype, device=layer.parameter.device)
