"""What a Learner lends its method, made by hand, so that a loss can be compared with a direct computation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import Net, blobs

from sparcl.methods import Batch, Host, Method
from sparcl.streams import Task

REPLAY = 5


def lend(method: Method, model: nn.Module) -> torch.Generator:
    """Attach with an augmentation that halves the inputs; returns the method's generator."""
    generator = torch.Generator().manual_seed(3)
    method.attach(Host(model, lambda raw: raw * 0.5, generator, torch.device("cpu"), REPLAY))
    return generator


def batch(task: Task, start: int, size: int = 6) -> Batch:
    ids = torch.arange(start, start + size)
    raw = task.train.inputs[ids]
    return Batch(ids, raw, raw * 0.5, task.train.labels[ids], task)


def second_task_of(method: Method) -> tuple[Net, Task, torch.Generator, Tensor]:
    """Model, second task, generator; the buffer holds six samples of the first, with the logits returned last."""
    first, second = blobs()
    model = Net()
    generator = lend(method, model)
    remembered = batch(first, 0)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    method.after_step(remembered, logits)
    return model, second, generator, logits


def picks(generator: torch.Generator, count: int) -> list[Tensor]:
    """What the next `count` draws from a buffer of six will pick; the generator stays where it is."""
    ahead = torch.Generator()
    ahead.set_state(generator.get_state())
    return [torch.randperm(6, generator=ahead)[:REPLAY] for _ in range(count)]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of log Σ exp(z) - z_y, written out."""
    return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same_gradients(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
