"""How the samples of an epoch make batches: what a Learner does, and what a forecast must foresee."""

from __future__ import annotations


def steps(samples: int, batch_size: int, drop_last: bool) -> tuple[int, int, int]:
    """Steps of an epoch of `samples` samples, how many samples each but the last has, and how many the last has."""
    batch = min(batch_size, samples)
    rest = last(samples % batch, batch, drop_last)
    return samples // batch + (rest > 0), batch, rest or batch


def last(left: int, batch: int, drop_last: bool) -> int:
    """Samples of the next step where `left` are left: a batch, or fewer if they are not dropped, but never just one.

    A single sample has no batch statistics; a batch of one is for networks that need none.
    """
    if left >= batch:
        return batch
    return 0 if drop_last or left < 2 else left
