"""Small pictures of samples, as PNG in a data address: nothing but the standard library writes them."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl.streams.lazy import Inputs

SIDE = 48
"""Pixels of a picture's longer side at most; a larger sample is averaged down to it."""


def shows(inputs: Inputs) -> bool:
    """Whether samples [N, C, H, W] are pictures: uint8, grey or RGB."""
    return inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[1] in (1, 3)


def data_address(image: Tensor) -> str:
    """A picture, uint8 [C, H, W] with C 1 or 3, as the address that an HTML page shows."""
    longer = max(image.shape[1:])
    if longer > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in image.shape[1:]]
        image = F.interpolate(image[None].float(), size=size, mode="area")[0].round().to(torch.uint8)
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def png(image: Tensor) -> bytes:
    """A PNG file of uint8 [C, H, W], C 1 (grey) or 3 (RGB)."""
    channels, height, width = image.shape
    rows = image.permute(1, 2, 0).reshape(height, -1)
    lines = torch.cat([rows.new_zeros(height, 1), rows], 1)  # each line begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    data = zlib.compress(lines.contiguous().numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
