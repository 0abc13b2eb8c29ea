"""Inputs to a network that has learned: as it learned them or, where these were pixels, in another form of the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparcl.errors import DataError
from sparcl.streams.lazy import Inputs, Lazy
from sparcl.streams.split import stored

ALLOWED = "the network learned pixels, whole from 0 to 255 or floating from 0 to 1"


def as_learned(array: Any, learned: torch.dtype | None, what: str) -> Inputs:
    """Inputs [N, ...] as `stored` gives them, in a form that the network's transform scales as what it has learned.

    Of one that learned uint8 other whole numbers from 0 to 255 become uint8; floating ones from 0 to 1 stay, and
    `Normalize` takes them for pixels / 255 (`sparcl-device` has the same rule).

    Args:
        learned: dtype of the samples that were learned, as stored; None: that is not known.

    Raises:
        DataError: they are no inputs, or would be taken for others than they are.
    """
    given = stored(array, what)
    if learned in (None, given.dtype):
        return given
    if learned == torch.uint8 and not isinstance(given, Lazy):
        return _as_pixels(array, given, what)
    check_kind(given, learned, f"{what} inputs")
    return given


def _as_pixels(array: Any, given: Tensor, what: str) -> Tensor:
    """`given`, float32 [N, ...], is what was made of the array."""
    dtype = str(array.dtype if isinstance(array, Tensor) else np.asarray(array).dtype)
    floating = "float" in dtype
    if "bool" in dtype:
        raise DataError(f"{what} inputs are truth values: {ALLOWED}")
    lowest, highest = float(given.min()), float(given.max())
    if lowest < 0 or highest > (1 if floating else 255):
        raise DataError(f"{what} inputs hold values from {lowest:.6g} to {highest:.6g}: {ALLOWED}")
    return given if floating else given.to(torch.uint8)


def check_kind(inputs: Inputs, learned: torch.dtype | None, what: str) -> None:
    """Raise DataError unless inputs [N, ...] are stored as what was `learned` (None: that is not known)."""
    if learned not in (None, inputs.dtype):
        given, known = (str(dtype).removeprefix("torch.") for dtype in (inputs.dtype, learned))
        raise DataError(
            f"{what} are {given}, and {known} was learned: give them as they were learned (uint8 is scaled to [0, 1],"
            " other numbers stay as they are)"
        )
