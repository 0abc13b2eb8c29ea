"""Whole numbers, as a user may write them."""

from __future__ import annotations

from numbers import Integral


def is_whole(value: object, least: int = 1, most: int | None = None) -> bool:
    """Whether it is a whole number from `least` to `most`; NumPy's are numbers, True and False are none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least <= int(value) and (most is None or int(value) <= most)
