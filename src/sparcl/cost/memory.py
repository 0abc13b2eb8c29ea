"""Bytes: of what a sparse network has to hold, and of what the process really held at its peak."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sparcl.methods.buffer import ReservoirBuffer
from sparcl.nn.layers import SparseLayer

INDEX_BYTES = 4
"""Of one position in the canonical form, an int32."""


def memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    layers: Sequence[SparseLayer],
    buffer: ReservoirBuffer | None = None,
) -> dict[str, int | None]:
    """Bytes by what they are for.

    All but the peak are those of the compact form, active weights alone, whichever backend ran: the reference backend
    holds its zeros as well, which shows in the peak.

    Returns:
        `parameter_bytes` (weights, biases), `index_bytes` (positions of the active weights), `gradient_bytes` (of what
        is trained and updated), `optimizer_bytes`, `buffer_bytes` (rehearsal), and `peak_rss_bytes` of the process
        (None where the platform does not say).
    """
    sparse = {id(layer.parameter): layer for layer in layers}
    parameters = index = gradients = state = 0
    for parameter in model.parameters():
        layer, size = sparse.get(id(parameter)), parameter.element_size()
        active = parameter.numel() if layer is None else len(layer.index)
        updated = active if layer is None or layer.chosen is None else int(layer.chosen.sum())
        parameters += active * size
        gradients += updated * size if parameter.requires_grad else 0
        index += active * INDEX_BYTES if layer is not None and active < torch.Size(layer.shape).numel() else 0
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor):
                entries = active if value.shape == parameter.shape else value.numel()
                state += entries * value.element_size()
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "parameter_bytes": parameters,
        "index_bytes": index,
        "gradient_bytes": gradients,
        "optimizer_bytes": state,
        "buffer_bytes": 0 if buffer is None else buffer.nbytes(),
    }


_before = 0
"""Of the peaks that were set back, the largest."""


def peak_rss_bytes() -> int | None:
    """The largest resident set of this process so far; None where the platform does not say."""
    now = _peak()
    return None if now is None else max(now, _before)


def set_back_peak() -> bool:
    """Let the system count its peak from now on; `peak_rss_bytes` still knows the one before. False: it cannot."""
    global _before
    before = peak_rss_bytes()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    _before = before or 0
    return True


def resident_bytes(field: str = "VmRSS") -> int | None:
    """VmRSS, what is resident now, or VmHWM, the most since the peak was set back; None where the system is silent."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _peak() -> int | None:
    """Linux is asked for VmHWM first: `ru_maxrss` of a process starts at the size of the process that started it."""
    if (peak := resident_bytes("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
