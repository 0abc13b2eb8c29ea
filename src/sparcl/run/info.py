"""`sparcl info`: what is installed and what can be named."""

from __future__ import annotations

import contextlib

import torch
from rich.table import Table

import sparcl
from sparcl import kernels, methods, nn, streams
from sparcl.folders import cache_folder
from sparcl.sparsity import SPARSIFIERS


def about() -> Table:
    """Versions, the backend, and every name that an option takes."""
    table = Table(show_header=False, title="sparcl")
    table.add_row("version", sparcl.__version__)
    table.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} thread(s)")
    native = f"available ({kernels.isa()})" if kernels.available() else f"missing: {kernels.why_unavailable()}"
    table.add_row("backend native", native)
    table.add_row("backend reference", "available")
    with contextlib.suppress(RuntimeError):  # nobody's home
        table.add_row("cache", str(cache_folder()))
    table.add_row("streams", ", ".join(streams.STREAMS))
    table.add_row("methods", ", ".join(methods.METHODS))
    table.add_row("sparsifiers", ", ".join(SPARSIFIERS))
    table.add_row("models", ", ".join(nn.MODELS))
    return table
