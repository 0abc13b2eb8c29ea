"""What the published Split CIFAR-10 protocol costs, beside SparCL's table 1: computed by the ledger, not trained."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from sparcl.cost.plan import plan
from sparcl.methods import ER, DERpp
from sparcl.nn import resnet18
from sparcl.published import PAPER_FLOPS
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Sparsifier

STREAM, TASKS, SAMPLES, EPOCHS, INPUT_SHAPE = "seq-cifar10", 5, 10_000, 50, (3, 32, 32)
HOSTS: dict[str, type[ER] | type[DERpp]] = {"er": ER, "derpp": DERpp}


@dataclass(frozen=True)
class Row:
    """One run's training FLOPs; `published` is SparCL's figure, recollected only where not `confirmed`."""

    method: str
    sparsity: float | None  # None: dense
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
    for (stream, method, name, sparsity), known in PAPER_FLOPS.items():
        if stream != STREAM:
            continue
        dense = name == Sparsifier.name
        sparsifier = Sparsifier() if dense else SparCL(sparsity)
        cost = plan(resnet18(10), HOSTS[method](200), sparsifier, [SAMPLES] * TASKS, INPUT_SHAPE, epochs=EPOCHS)
        rows.append(
            Row(
                method,
                None if dense else sparsity,
                cost["paper"],
                known.flops,
                known.confirmed,
                cost["executed"],
                cost["dense"],
            )
        )
    return rows


def table(rows: list[Row]) -> Table:
    """Rows for the terminal, ×10^15."""
    out = Table(
        title="Training FLOPs ×10^15, Split CIFAR-10, ResNet-18, 50 epochs",
        caption="(r): recollected, not confirmed in a source. Paper: its convention; executed: every pass that runs.",
    )
    out.add_column("method", no_wrap=True)
    for heading in ("sparsity", "paper, ours", "published", "differs", "executed", "of dense"):
        out.add_column(heading, justify="right", no_wrap=True)
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
