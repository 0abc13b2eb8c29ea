"""Sets of positions as ascending int64 tensors: what two have in common, and two in one.

Masks move in the middle of training, so this must be quick: on a CPU NumPy does it three to ten times faster than
PyTorch, which sorts and searches element by element.

Legend: M positions that there are, K scores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

SAMPLED, SAMPLED_FROM = 32, 4096
"""One value in so many says where the k-th lowest lies; from how many values on that is quicker than to part all."""


def common(old: Tensor, new: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where two sets of positions below `size` (M) hold what is in both: places in `old` and in `new`, int64.

    Both are ascending, and so `old[in_old]` and `new[in_new]` are the same, in the same order.
    """
    if old.device.type == "cpu":
        there, before, after = np.zeros(size, dtype=np.bool_), old.numpy(), new.numpy()
        there[before] = True
        held = np.flatnonzero(there[after])
        there[before] = False
        there[after] = True
        return torch.from_numpy(np.flatnonzero(there[before])), torch.from_numpy(held)
    marked = torch.zeros(size, dtype=torch.bool, device=old.device)
    marked[old] = True
    in_new = marked[new].nonzero().squeeze(1)
    marked.zero_()
    marked[new] = True
    return marked[old].nonzero().squeeze(1), in_new


def carried(values: Tensor, in_old: Tensor, in_new: Tensor, count: int, fresh: float | Tensor) -> Tensor:
    """[count] values of a new set: those of the old one where `common` found both, `fresh` elsewhere."""
    if values.device.type != "cpu":
        result = values.new_empty(count).fill_(fresh)
        result[in_new] = values[in_old]
        return result
    old = _array(values)
    new = np.full(count, float(fresh), dtype=old.dtype)
    new[in_new.numpy()] = old[in_old.numpy()]
    return torch.from_numpy(new).to(values.dtype)


def split(positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [K] where `mask` (bool [K]) holds, and the others, each in their order."""
    if positions.device.type != "cpu":
        return positions[mask], positions[~mask]
    held, there = positions.numpy(), mask.numpy()
    return torch.from_numpy(held[there]), torch.from_numpy(held[~there])


def merged(one: Tensor, other: Tensor) -> Tensor:
    """The positions of both, ascending."""
    both = torch.cat([one, other])
    if both.device.type != "cpu":
        return both.sort().values
    return torch.from_numpy(np.sort(both.numpy(), kind="stable"))  # two ascending runs: one merge


def kth_lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest (from 1) of scores [K] without NaN, a scalar."""
    if scores.device.type != "cpu":
        return torch.kthvalue(scores, k).values
    values = _array(scores)
    if len(values) >= SAMPLED_FROM:
        low, high = _bracket(values, k)
        within = values[(values >= low) & (values <= high)]
        rank = k - int(np.count_nonzero(values < low))
        if 0 < rank <= len(within):  # else the sample was misled
            values, k = within, rank
    return torch.from_numpy(np.partition(values, k - 1)[k - 1 : k])[0]


def below(scores: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Which of scores [K] lie below a scalar, bool [K], and the places of those that equal it, int64, ascending."""
    if scores.device.type != "cpu":
        return scores < threshold, (scores == threshold).nonzero().squeeze(1)
    values, limit = _array(scores), _array(threshold)
    return torch.from_numpy(values < limit), torch.from_numpy(np.flatnonzero(values == limit))


def _array(values: Tensor) -> Array:
    """The memory of a tensor on the CPU; bfloat16, which NumPy does not know, as float32: the same values."""
    values = values.detach()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _bracket(values: Array, k: int) -> tuple[np.floating[Any], np.floating[Any]]:
    """Two values that the k-th lowest lies between in all likelihood, from a sample (Floyd and Rivest, 1975)."""
    sample = np.sort(values[::SAMPLED])
    place, margin = (k - 1) * len(sample) // len(values), 2 * math.isqrt(len(sample))
    return sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
