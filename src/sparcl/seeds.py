"""One seed, many independent generators: each source of randomness has a name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the source of randomness `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the source of randomness `name`: the same on every device."""
    return torch.Generator().manual_seed(derive(seed, name))


class Generators:
    """A Learner's sources of randomness; the state holds PyTorch's own as well (dropout), the device's included."""

    NAMES = ("order", "augment", "importance", "method", "head")

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.order, self.augment, self.importance, self.method, self.head = (
            generator(seed, name) for name in self.NAMES
        )

    def state_dict(self) -> dict[str, Tensor]:
        """By name, uint8."""
        state = {name: getattr(self, name).get_state() for name in self.NAMES}
        state["torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        for name in self.NAMES:
            getattr(self, name).set_state(state[name])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
