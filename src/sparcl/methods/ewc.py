"""EWC, elastic weight consolidation, online (Kirkpatrick et al., 2017; Schwarz et al., 2018): hold what mattered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparcl.checkpoint import checks
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods.method import Batch, Method, check_not_negative
from sparcl.methods.respond import evaluating
from sparcl.streams.task import Task


class EWC(Method):
    """L(D_t) + λ·Σ F·(θ - θ*)², θ* the weights at the last task's end, F <- γ·F + the new task's Fisher information.

    As in the Mammoth framework, whose λ the published settings are: no factor ½, and of each sample p(y|x)·(∂ log
    p(y|x)/∂θ)² at its label y. One backward pass for each training sample, with running statistics, at a task's
    end, on top of a budget of seconds.

    Args:
        strength: λ.
        gamma: γ, what is kept of the older tasks' information.
        single_head: see Method.
    """

    name = "ewc"
    masks = "fixed"
    by_parameter = True

    def __init__(self, *, strength: float = 10.0, gamma: float = 1.0, single_head: bool = False) -> None:
        super().__init__(single_head=single_head)
        check_not_negative(self.name, strength=strength)
        if not 0.0 <= gamma <= 1.0:
            raise ConfigError(f"gamma {gamma} is not allowed for ewc; use a share from 0 to 1")
        self.strength, self.gamma = strength, gamma
        self.fisher: list[Tensor] = []
        self.anchor: list[Tensor] = []

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model(batch.inputs)
        loss = self.cross_entropy(logits, batch)
        return (loss + self.penalty() if self.anchor else loss), logits

    def penalty(self) -> Tensor:
        """λ·Σ F·(θ - θ*)² over all parameters."""
        terms = zip(self.fisher, self._parameters(), self.anchor, strict=True)
        return self.strength * torch.stack([(f * (p - a).square()).sum() for f, p, a in terms]).sum()

    def end_task(self, task: Task) -> None:
        new = self._information(task)
        self.fisher = [self.gamma * f + n for f, n in zip(self.fisher, new, strict=True)] if self.fisher else new
        self.anchor = [p.detach().clone() for p in self._parameters()]

    def _information(self, task: Task) -> list[Tensor]:
        """Mean over the task's training samples of p(y|x)·(∂ log p(y|x)/∂θ)², a tensor for each parameter."""
        parameters = self._parameters()
        total = [torch.zeros_like(p) for p in parameters]
        into_of = {p: into for p, into in zip(parameters, total, strict=True) if p.requires_grad}  # frozen: none
        inputs, labels = task.train.inputs, task.train.labels.tolist()
        with evaluating(self.host.model):
            for n, label in enumerate(labels):
                sample = task.transform.test(inputs[n : n + 1].to(self.host.device))
                log_p = self.host.model(sample).log_softmax(dim=1)[0, label]
                gradients = torch.autograd.grad(log_p, list(into_of), allow_unused=True)
                for into, g in zip(into_of.values(), gradients, strict=True):
                    if g is not None:  # a parameter that the answer does not depend on carries no information
                        into += log_p.detach().exp() * g.square()
        return [t / len(labels) for t in total]

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.host.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        parts = {"fisher": self.fisher, "anchor": self.anchor}
        return {name: {str(i): t for i, t in enumerate(tensors)} for name, tensors in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fisher, self.anchor = (self._of_parameters(state[name], name) for name in ("fisher", "anchor"))
        if len(self.fisher) != len(self.anchor):
            raise CheckpointError("EWC's fisher and anchor in the checkpoint differ in length")

    def _of_parameters(self, tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
        """A tensor for each parameter or, in the first task, none."""
        expected = {str(i): p for i, p in enumerate(self._parameters())} if tensors else {}
        checks.keys(tensors, expected, f"EWC's {name}")
        return [
            checks.tensor(tensors[i], f"EWC's {name}", p.dtype, tuple(p.shape)).to(p.device)
            for i, p in expected.items()
        ]
