"""What a finished run should have left and has not whole: a run that goes on writes it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sparcl import regular
from sparcl.checkpoint import Store
from sparcl.errors import CheckpointError
from sparcl.report.records import Problem, read_run
from sparcl.run.record import RunDirectory

MOST_HEADER = 100 << 20
"""Bytes of a safetensors file's header, as its format allows."""


def damage(directory: RunDirectory) -> str | None:
    """What is missing or cut off of a finished run's result and weights, in words; None: nothing is seen.

    Sizes are looked at, not every byte: a sweep asks this of hundreds of runs. One that was cleared of its weights and
    its checkpoint, its records kept, lacks nothing.
    """
    record = read_run(directory.path)
    if isinstance(record, Problem):
        return f"{directory.path}: {record.reason}"
    needs = _needs(record.result)
    if not os.path.lexists(directory.model) and Store(directory.checkpoints).empty:
        return None
    for file in (directory.model, *([directory.answers] if needs else [])):
        if (reason := _cut_off(file)) is not None:
            return f"{file} {reason}"
    return None


def check_mendable(directory: RunDirectory, damaged: str) -> None:
    """Refuse to train a finished run anew in silence, which is what is left without a checkpoint (CheckpointError)."""
    if Store(directory.checkpoints).empty:
        raise CheckpointError(
            f"{damaged}, and there is no checkpoint to write it again from: remove {directory.result}, and --resume"
            " runs all of it again"
        )


def _needs(result: Any) -> bool:
    model = result.get("model")
    return isinstance(model, dict) and model.get("needs") is not None


def _cut_off(file: Path) -> str | None:
    """What is wrong with the size of a safetensors file, or None."""
    try:
        with regular.open_regular(file, ours=True) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length <= min(MOST_HEADER, size) else b"")
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return None if size == 8 + length + max(ends, default=0) else "is cut off"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "is damaged"
