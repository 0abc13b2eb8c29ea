"""Published settings of every method, stream and buffer size, as data with their sources.

All are for plain SGD (no momentum, no weight decay) and batches of 32, on replay too, unless the source says otherwise.
"""

from __future__ import annotations

from typing import Any

from sparcl import named
from sparcl.errors import ConfigError, unknown

Settings = dict[str, Any]
"""`lr`, the learning rate; `source`, where the values come from; everything else is an argument of the method."""

Key = tuple[str, str, int | None]
"""(stream, method, buffer size; None for a method without a buffer)."""

DER_PAPER = "Buzzega et al. 2020 (DER), values of the Mammoth framework"
MNIST = f"{DER_PAPER}; there with batches of 10 and one epoch"
CARRIED = "seq-cifar100 of the Mammoth framework, carried over"
OWN = "no published value for this stream; chosen here"

_BUFFERS = (200, 500, 5120)


def _rows(stream: str, method: str, source: str, **columns: float | tuple[float, float, float]) -> dict[Key, Settings]:
    """One row for each buffer size; a column is one value for all three or a value for each."""
    per_buffer = {name: v if isinstance(v, tuple) else (v,) * len(_BUFFERS) for name, v in columns.items()}
    return {
        (stream, method, size): {**{name: v[i] for name, v in per_buffer.items()}, "source": source}
        for i, size in enumerate(_BUFFERS)
    }


def _row(stream: str, method: str, source: str, **columns: float) -> dict[Key, Settings]:
    """The one row of a method without a buffer."""
    return {(stream, method, None): {**columns, "source": source}}


PUBLISHED: dict[Key, Settings] = {
    **_row("seq-cifar10", "finetune", DER_PAPER, lr=0.1),
    **_row("seq-cifar10", "joint", DER_PAPER, lr=0.1),
    **_row("seq-cifar10", "ewc", DER_PAPER, lr=0.03, strength=10.0, gamma=1.0),
    **_row("seq-cifar10", "lwf", DER_PAPER, lr=0.01, alpha=3.0, temperature=2.0, weight_decay=0.0005),
    **_row("seq-cifar10", "packnet", OWN, lr=0.03),
    **_row("seq-cifar10", "lps", OWN, lr=0.03),
    **_rows("seq-cifar10", "er", DER_PAPER, lr=0.1),
    **_rows("seq-cifar10", "er-ace", CARRIED, lr=0.03),
    **_rows("seq-cifar10", "der", DER_PAPER, lr=0.03, alpha=0.3),
    **_rows("seq-cifar10", "derpp", DER_PAPER, lr=0.03, alpha=(0.1, 0.2, 0.1), beta=(0.5, 0.5, 1.0)),
    **_rows("seq-cifar10", "agem", DER_PAPER, lr=0.03),
    **_rows("seq-cifar10", "icarl", DER_PAPER, lr=(0.1, 0.1, 0.03), weight_decay=0.00001),
    **_rows("seq-cifar10", "fdr", DER_PAPER, lr=0.03, alpha=(0.3, 1.0, 0.3)),
    **_row("seq-tinyimg", "finetune", DER_PAPER, lr=0.03),
    **_row("seq-tinyimg", "joint", DER_PAPER, lr=0.03),
    **_row("seq-tinyimg", "ewc", DER_PAPER, lr=0.03, strength=25.0, gamma=1.0),
    **_row("seq-tinyimg", "lwf", DER_PAPER, lr=0.01, alpha=1.0, temperature=2.0, weight_decay=0.0005),
    **_rows("seq-tinyimg", "er", DER_PAPER, lr=(0.1, 0.03, 0.1)),
    **_rows("seq-tinyimg", "der", DER_PAPER, lr=0.03, alpha=0.1),
    **_rows("seq-tinyimg", "derpp", DER_PAPER, lr=0.03, alpha=(0.1, 0.2, 0.1), beta=(1.0, 0.5, 0.5)),
    **_rows("seq-tinyimg", "agem", DER_PAPER, lr=0.01),
    **_rows("seq-tinyimg", "icarl", DER_PAPER, lr=0.03, weight_decay=0.00001),
    **_rows("seq-tinyimg", "fdr", DER_PAPER, lr=0.03, alpha=(0.3, 1.0, 0.3)),
    **_row("seq-digits", "finetune", OWN, lr=0.1),
    **_row("seq-digits", "joint", OWN, lr=0.1),
    **_rows("seq-digits", "er", OWN, lr=0.1),
    **_rows("seq-digits", "der", OWN, lr=0.1, alpha=1.0),
    **_rows("seq-digits", "derpp", OWN, lr=0.1, alpha=0.1, beta=0.5),
    **_rows("seq-digits", "er-ace", OWN, lr=0.1),
    **_row("seq-digits", "ewc", OWN, lr=0.03, strength=10.0, gamma=1.0),
    **_row("seq-digits", "lwf", OWN, lr=0.03, alpha=1.0, temperature=2.0),
    **_rows("seq-digits", "agem", OWN, lr=0.03),
    **_rows("seq-digits", "icarl", OWN, lr=0.1),
    **_rows("seq-digits", "fdr", OWN, lr=0.03, alpha=1.0),
    **_row("seq-digits", "packnet", OWN, lr=0.03),
    **_row("seq-digits", "lps", OWN, lr=0.1),
    **_row("seq-mnist", "finetune", MNIST, lr=0.03),
    **_row("seq-mnist", "joint", MNIST, lr=0.03),
    **_row("seq-mnist", "ewc", MNIST, lr=0.03, strength=90.0, gamma=1.0),
    **_row("seq-mnist", "lwf", MNIST, lr=0.03, alpha=1.0, temperature=2.0, weight_decay=0.0005),
    **_rows("seq-mnist", "er", MNIST, lr=(0.01, 0.1, 0.1)),
    **_rows("seq-mnist", "der", MNIST, lr=(0.03, 0.03, 0.1), alpha=(0.2, 1.0, 0.5)),
    **_rows("seq-mnist", "derpp", MNIST, lr=(0.03, 0.03, 0.1), alpha=(0.2, 1.0, 0.2), beta=(1.0, 0.5, 0.5)),
    **_rows("seq-mnist", "agem", MNIST, lr=0.1),
    **_rows("seq-mnist", "icarl", MNIST, lr=0.1),
    **_rows("seq-mnist", "fdr", MNIST, lr=(0.03, 0.1, 0.1), alpha=(0.5, 0.2, 0.2)),
}
"""By (stream, method, buffer size)."""

PRESETS: dict[str, dict[Key, Settings]] = {
    "sparcl-script": {
        ("seq-cifar10", "derpp", 500): {
            "lr": 0.03,
            "alpha": 0.1,
            "beta": 0.5,
            "source": "the SparCL authors' training script",
        },
    },
}
"""Named alternatives to the published rows."""

FALLBACK = {"seq-fashion-mnist": "seq-mnist"}
"""Where a stream without rows of its own looks first; then, and every other stream, in seq-cifar10."""


def published(stream: str, method: str, buffer_size: int | None = None, preset: str | None = None) -> Settings:
    """The settings of a method on a stream: of the nearest buffer size, of seq-cifar10 where the stream has none.

    Args:
        stream: any name; unknown streams (a folder, arrays) take seq-cifar10's rows.
        method: a name of `METHODS`; your own, `package.module:Class`, has the Learner's learning rate.
        buffer_size: samples kept; ignored by methods without a buffer.
        preset: a name of `PRESETS`, or None for the published rows.

    Returns:
        A copy: `lr`, `source` and the arguments of the method.

    Raises:
        ConfigError: an unknown preset, or a method that it has no row for.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    if preset is None and named.is_own(method):
        return {"lr": 0.03, "source": "the Learner's default"}
    table = PUBLISHED if preset is None else PRESETS[preset]
    for name in (stream, FALLBACK.get(stream, stream), "seq-cifar10"):
        rows = {key[2]: row for key, row in table.items() if key[:2] == (name, method)}
        if rows:
            wanted = buffer_size or 0
            return dict(rows[min(rows, key=lambda size: abs((size or 0) - wanted))])
    known = sorted({key[1] for key in table})
    what = "published settings" if preset is None else f"preset {preset}"
    raise ConfigError(f"{what}: no values for method {method!r}; there are some for: {', '.join(known)}")
