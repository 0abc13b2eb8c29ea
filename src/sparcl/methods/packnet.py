"""PackNet (Mallya & Lazebnik, CVPR 2018): pack each task into the weights that those before it left free."""

from __future__ import annotations

from torch import Tensor

from sparcl.methods.partition import PartitionMethod


class PackNet(PartitionMethod):
    """Train all free weights beside the fixed ones, keep the largest, train these on; see PartitionMethod.

    A task answers with its own weights and with those of all tasks before it, so that its answers never change.

    Args:
        pruned: share of the free weights of each layer left to later tasks (published: .5 to .75).
    """

    name = "packnet"

    def used(self, i: int, t: int) -> Tensor:
        return (self.owner[i] > 0) & (self.owner[i] <= t + 1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.host.model(inputs)
        return logits
