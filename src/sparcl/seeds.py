"""One seed, many independent generators: each source of randomness has a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the source of randomness `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the source of randomness `name`: the same on every device."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextmanager
def given_back(device: torch.device | None = None) -> Iterator[None]:
    """PyTorch's global generators, the device's included, are after this as they were before."""
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        yield


def seed_torch(seed: int, device: torch.device | None = None) -> None:
    """Seed PyTorch's global generators: the CPU's and, where it is a GPU, the device's, but no other device's."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def global_state(device: torch.device) -> dict[str, Tensor]:
    """Of PyTorch's global generators: the CPU's and, where it is a GPU, the device's; uint8 by name."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from `global_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class Generators:
    """A Learner's sources of randomness.

    What a model draws itself (dropout) comes from PyTorch's global generators, and nothing else does. The Learner has
    states of its own for these and lends them, `lent`, while it trains: the caller's are as they were afterwards.
    """

    NAMES = ("order", "augment", "importance", "method", "head")

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.order, self.augment, self.importance, self.method, self.head = (
            generator(seed, name) for name in self.NAMES
        )
        self._lent = False
        with given_back(device):
            seed_torch(derive(seed, "torch"), device)
            self._torch = global_state(device)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """In here PyTorch's global generators are the Learner's own."""
        with given_back(self.device):
            set_global_state(self._torch, self.device)
            self._lent = True
            try:
                yield
            finally:
                self._torch, self._lent = global_state(self.device), False

    @contextmanager
    def aside(self, seed: int) -> Iterator[None]:
        """In here they are seeded anew, for draws that leave no trace: a model that draws while it is evaluated."""
        with given_back(self.device):
            seed_torch(seed, self.device)
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """By name, uint8."""
        state = {name: getattr(self, name).get_state() for name in self.NAMES}
        return {**state, **(global_state(self.device) if self._lent else self._torch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        for name in self.NAMES:
            getattr(self, name).set_state(state[name])
        torch.Generator().set_state(state["torch"])  # refuses what is none
        self._torch["torch"] = state["torch"].clone()
        if "cuda" in self._torch and "cuda" in state:
            torch.Generator(self.device).set_state(state["cuda"])
            self._torch["cuda"] = state["cuda"].clone()
