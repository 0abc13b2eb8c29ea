"""The ledger's own figures beside those of SparCL's table 1, Split CIFAR-10 with a ResNet-18: computed, not trained."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from sparcl.cost.plan import plan
from sparcl.methods import ER, DERpp
from sparcl.methods.method import Method
from sparcl.nn import resnet18
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Sparsifier

TASKS, SAMPLES, EPOCHS, INPUT_SHAPE = 5, 10_000, 50, (3, 32, 32)

RUNS: tuple[tuple[type[ER] | type[DERpp], float | None, float, bool], ...] = (
    (ER, None, 11.1, True),
    (ER, 0.75, 2.0, True),
    (DERpp, None, 13.9, False),
    (DERpp, 0.75, 2.5, False),
    (DERpp, 0.90, 1.1, False),
    (DERpp, 0.95, 0.6, False),
)
"""Method, sparsity (None: dense), published training FLOPs ×10^15, and whether a source read in full confirms them."""


@dataclass(frozen=True)
class Row:
    """One run's training FLOPs; `published` is SparCL's figure, recollected only where not `confirmed`."""

    method: str
    sparsity: float | None
    paper: int
    published: float
    confirmed: bool
    executed: int
    dense: int

    @property
    def difference(self) -> float:
        """Of our count in the paper's convention, relative to the published figure."""
        return self.paper / self.published - 1


def published_rows() -> list[Row]:
    """Every run of SparCL's table whose FLOPs are known: 5 tasks × 10,000 samples, 50 epochs, batches of 32."""
    rows = []
    for kind, sparsity, published, confirmed in RUNS:
        method: Method = kind(200)
        sparsifier = Sparsifier() if sparsity is None else SparCL(sparsity)
        flops = plan(resnet18(10), method, sparsifier, [SAMPLES] * TASKS, INPUT_SHAPE, epochs=EPOCHS)
        rows.append(
            Row(
                kind.name,
                sparsity,
                flops["paper"],
                published * 1e15,
                confirmed,
                flops["executed"],
                flops["dense"],
            )
        )
    return rows


def table(rows: list[Row]) -> Table:
    """Rows for the terminal, ×10^15."""
    out = Table(
        title="Training FLOPs ×10^15, Split CIFAR-10, ResNet-18, 50 epochs",
        caption="(r): recollected, not confirmed in a source. Paper: its convention; executed: every pass that runs.",
    )
    out.add_column("method")
    for heading in ("sparsity", "paper, ours", "published", "difference", "executed", "of dense"):
        out.add_column(heading, justify="right")
    for row in rows:
        out.add_row(
            row.method,
            "dense" if row.sparsity is None else f"{row.sparsity:.2f}",
            f"{row.paper / 1e15:.2f}",
            f"{row.published / 1e15:.1f}{'' if row.confirmed else ' (r)'}",
            f"{row.difference:+.1%}",
            f"{row.executed / 1e15:.2f}",
            f"{row.executed / row.dense:.1%}",
        )
    return out
