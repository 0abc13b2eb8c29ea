"""`sparcl info`: what is installed, what can be named, and what the published protocol costs without training it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table

import sparcl
from sparcl import kernels, methods, nn, streams
from sparcl.config import Experiment
from sparcl.cost.plan import plan
from sparcl.run import build
from sparcl.sparsity import SPARSIFIERS

CIFAR10_SAMPLES = (10_000,) * 5
CIFAR10_SHAPE = (3, 32, 32)


def about() -> Table:
    """Versions, the backend, and every name that an option takes."""
    table = Table(show_header=False, title="sparcl")
    table.add_row("version", sparcl.__version__)
    table.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} thread(s)")
    native = f"available ({kernels.isa()})" if kernels.available() else f"missing: {kernels.why_unavailable()}"
    table.add_row("backend native", native)
    table.add_row("backend reference", "available")
    table.add_row("streams", ", ".join(streams.STREAMS))
    table.add_row("methods", ", ".join(methods.METHODS))
    table.add_row("sparsifiers", ", ".join(SPARSIFIERS))
    table.add_row("models", ", ".join(nn.MODELS))
    return table


@dataclass(frozen=True)
class Published:
    """A figure of the paper, training FLOPs / 10^15 on Split CIFAR-10, and whether a source confirms it."""

    method: str
    sparsity: float | None
    flops: float
    confirmed: bool


PUBLISHED_FLOPS = (
    Published("er", None, 11.1, True),
    Published("er", 0.75, 2.0, True),
    Published("derpp", None, 13.9, False),
    Published("derpp", 0.75, 2.5, False),
    Published("derpp", 0.90, 1.1, False),
    Published("derpp", 0.95, 0.6, False),
)


def published_flops() -> Table:
    """The published protocol (five tasks of 10,000 samples, 50 epochs, ResNet-18) through the ledger."""
    table = Table(title="Split CIFAR-10, published protocol: training FLOPs / 10¹⁵")
    for heading in ("method", "sparsity", "paper convention", "in the paper", "difference", "executed", "of dense"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in PUBLISHED_FLOPS:
        totals = forecast(row.method, row.sparsity)
        ours = totals["paper"] / 1e15
        table.add_row(
            row.method if row.sparsity is None else f"SparCL-{row.method}",
            "–" if row.sparsity is None else f"{row.sparsity:.2f}",
            f"{ours:.2f}",
            f"{row.flops:.1f}" + ("" if row.confirmed else " (recollected)"),
            f"{ours - row.flops:+.2f}",
            f"{totals['executed'] / 1e15:.2f}",
            f"{totals['executed'] / totals['dense']:.1%}",
        )
    return table


def forecast(method: str, sparsity: float | None) -> dict[str, int]:
    """FLOPs of the published CIFAR-10 protocol: `executed`, `paper` and `dense`."""
    sparsifier = "dense" if sparsity is None else "sparcl"
    experiment = Experiment("seq-cifar10", method=method, sparsifier=sparsifier, sparsity=sparsity).resolve()
    assert experiment.model is not None
    assert experiment.epochs is not None
    return plan(
        nn.build(experiment.model, 10, CIFAR10_SHAPE, experiment.width),
        build.method(experiment),
        build.sparsifier(experiment),
        CIFAR10_SAMPLES,
        CIFAR10_SHAPE,
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
    )
