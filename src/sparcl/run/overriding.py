"""Settings of a file with those of the command line in their place."""

from __future__ import annotations

from typing import Any

from sparcl.run.combination import BUDGETS, OF_BUFFER

OF_LAYER_CHOICE = (
    *("stream", "resize", "method", "model", "width", "activations", "batch_size", "backend", "device", "threads"),
    *("sparsifier", "sparsity", "pattern", "block_size", "distribution", "prunable"),
)
"""Settings that the timing of the layers depends on: with another value of one, a `layer_choice` says nothing."""


def overridden(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values of a file with those `given` in their place.

    A layer choice, a pace or a fit of other settings is dropped, and a budget given instead of the file's replaces it.
    """
    changed = [k for k in OF_LAYER_CHOICE if k in given and given[k] != values.get(k)]
    kept = {k: v for k, v in values.items() if not (changed and k == "layer_choice")}
    if any(k != "data" and given[k] != values.get(k) for k in given):
        kept.pop("pace", None)
        kept.pop("fitted", None)
    if "init" in given:
        kept.pop("init_sha256", None)
    if any(k in given for k in BUDGETS):
        kept = {k: v for k, v in kept.items() if k not in BUDGETS}
    if any(k in given for k in OF_BUFFER[:2]):
        kept = {k: v for k, v in kept.items() if k not in OF_BUFFER[:2]}
    return {**kept, **given}
