"""Sets of positions as ascending int64 tensors: what two have in common, and two in one.

Masks move in the middle of training, so this must be quick: on a CPU NumPy does it three to ten times faster than
PyTorch, which sorts and searches element by element.

Legend: M positions that there are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def common(old: Tensor, new: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which of two sets of positions below `size` (M) are in both: bool, of each of `old` and of each of `new`.

    Both are ascending, and so `old[in_new]` and `new[in_old]` are the same, in the same order.
    """
    there = torch.zeros(size, dtype=torch.bool, device=old.device)
    there[old] = True
    in_old = there[new]
    there.zero_()
    there[new] = True
    return there[old], in_old


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
    return torch.from_numpy(np.partition(scores.detach().numpy(), k - 1)[k - 1 : k])[0]
