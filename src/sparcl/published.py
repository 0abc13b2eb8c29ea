"""Figures of the literature, as data with their sources, confirmed in a source read in full but where it says not.

They were measured under the full protocol (50 epochs a task on seq-cifar10, 100 on seq-tinyimg, ResNet-18 of width 64,
all training images), so they stand beside runs for orientation and are equals only of runs under that protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DER = "Buzzega et al. 2020, ten seeds"
SPARCL = "Wang et al. 2022 (SparCL)"

MeanStd = tuple[float, float]


@dataclass(frozen=True)
class Published:
    """Accuracy in percent (mean, standard deviation) as published; None where it was not confirmed."""

    class_il: MeanStd | None
    task_il: MeanStd | None
    source: str


@dataclass(frozen=True)
class PublishedFlops:
    """Training FLOPs by the paper's convention; recollected only where no source read in full confirms them."""

    flops: float
    confirmed: bool


def _rows(stream: str, buffer: int, rows: dict[str, tuple[MeanStd, MeanStd]]) -> dict[tuple[str, str, int], Published]:
    return {(stream, method, buffer): Published(c, t, DER) for method, (c, t) in rows.items()}


DENSE: dict[tuple[str, str, int], Published] = {
    **_rows(
        "seq-cifar10",
        200,
        {
            "er": ((44.79, 1.86), (91.19, 0.94)),
            "agem": ((20.04, 0.34), (83.88, 1.49)),
            "icarl": ((49.02, 3.20), (88.99, 2.13)),
            "fdr": ((30.91, 2.74), (91.01, 0.68)),
            "der": ((61.93, 1.79), (91.40, 0.92)),
            "derpp": ((64.88, 1.17), (91.92, 0.60)),
        },
    ),
    **_rows(
        "seq-cifar10",
        500,
        {
            "er": ((57.74, 0.27), (93.61, 0.27)),
            "agem": ((22.67, 0.57), (89.48, 1.45)),
            "icarl": ((47.55, 3.95), (88.22, 2.62)),
            "fdr": ((28.71, 3.23), (93.29, 0.59)),
            "der": ((70.51, 1.67), (93.40, 0.39)),
            "derpp": ((72.70, 1.36), (93.88, 0.50)),
        },
    ),
    **_rows(
        "seq-tinyimg",
        200,
        {
            "er": ((8.49, 0.16), (38.17, 2.00)),
            "agem": ((8.07, 0.08), (22.77, 0.03)),
            "icarl": ((7.53, 0.79), (28.19, 1.47)),
            "fdr": ((8.70, 0.19), (40.36, 0.68)),
            "der": ((11.87, 0.78), (40.22, 0.67)),
            "derpp": ((10.96, 1.17), (40.87, 1.16)),
        },
    ),
    **_rows(
        "seq-tinyimg",
        500,
        {
            "er": ((9.99, 0.29), (48.64, 0.46)),
            "agem": ((8.06, 0.04), (25.33, 0.49)),
            "icarl": ((9.38, 1.53), (31.55, 3.27)),
            "fdr": ((10.54, 0.21), (49.88, 0.71)),
            "der": ((17.75, 1.14), (51.78, 0.88)),
            "derpp": ((19.38, 1.41), (51.91, 0.68)),
        },
    ),
}
"""Dense networks, by (stream, method, buffer size)."""

PAPER_FLOPS: dict[tuple[str, str, str, float], PublishedFlops] = {
    ("seq-cifar10", "er", "dense", 0.0): PublishedFlops(11.1e15, confirmed=True),
    ("seq-cifar10", "er", "sparcl", 0.75): PublishedFlops(2.0e15, confirmed=True),
    ("seq-cifar10", "derpp", "dense", 0.0): PublishedFlops(13.9e15, confirmed=False),
    ("seq-cifar10", "derpp", "sparcl", 0.75): PublishedFlops(2.5e15, confirmed=False),
    ("seq-cifar10", "derpp", "sparcl", 0.90): PublishedFlops(1.1e15, confirmed=False),
    ("seq-cifar10", "derpp", "sparcl", 0.95): PublishedFlops(0.6e15, confirmed=False),
}
"""By (stream, method, sparsifier, sparsity); from SPARCL's table 1."""

AS_PUBLISHED: dict[str, object] = {
    "pattern": "unstructured",
    "distribution": "uniform",
    "prunable": None,
    "gradient_sparsity": 0.2,
    "sample_removal": 0.3,
    "importance": "cwi",
}
"""The settings of SparCL that table 1 is of; where a run has others (an ablation, blocks) it has no like in it."""


def accuracy(stream: str, method: str, sparsifier: str, buffer: int | None) -> Published | None:
    """The published accuracies of a setting, or None where none is confirmed."""
    if sparsifier != "dense" or buffer is None:
        return None
    return DENSE.get((stream, method, buffer))


def paper_flops(
    stream: str, method: str, sparsifier: str, sparsity: float, settings: Mapping[str, object]
) -> float | None:
    """The published training FLOPs (paper's convention) of a setting, or None where none are confirmed.

    Args:
        stream, method, sparsifier, sparsity: the key of `PAPER_FLOPS`.
        settings: the run's others, by their names in config.toml; those left out are as published.
    """
    if sparsifier != "dense" and any(settings.get(name, value) != value for name, value in AS_PUBLISHED.items()):
        return None
    row = PAPER_FLOPS.get((stream, method, sparsifier, round(sparsity, 4)))
    return row.flops if row is not None and row.confirmed else None
