"""One seed, many independent generators: each source of randomness has a name."""

import hashlib

import torch


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the source of randomness `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the source of randomness `name`: the same on every device."""
    return torch.Generator().manual_seed(derive(seed, name))
