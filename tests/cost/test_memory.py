"""Bytes, against counts by hand."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from sparcl.cost.memory import memory, peak_rss_bytes
from sparcl.methods.buffer import ReservoirBuffer
from sparcl.nn import sparse_layers
from tests.toys import PRUNABLE_OF_NET, Net


def test_a_dense_network() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    figures = memory(model, optimizer, [])
    assert figures["parameter_bytes"] == figures["gradient_bytes"] == figures["optimizer_bytes"] == 4 * (12 + 4 + 4 + 4)
    assert figures["index_bytes"] == figures["buffer_bytes"] == 0


def test_a_sparse_network_holds_its_active_weights_and_where_they_are() -> None:
    model = Net()
    layers = sparse_layers(model, PRUNABLE_OF_NET)
    dense = sum(p.numel() for p in model.parameters()) - sum(layer.parameter.numel() for layer in layers)
    optimizer = torch.optim.Adam(model.parameters())
    for layer in layers[:2]:
        layer.set_index(torch.arange(50))
    layers[0].set_chosen(torch.arange(50) < 40)
    model(torch.randn(2, 2, 6, 6)).sum().backward()
    optimizer.step()
    figures = memory(model, optimizer, layers)
    held = dense + 50 + 50 + 8 * 12  # the third layer is sparse in name only: it needs no index
    steps = len(list(model.parameters()))
    assert figures["parameter_bytes"] == 4 * held
    assert figures["gradient_bytes"] == 4 * (held - 10)
    assert figures["index_bytes"] == 4 * 100
    assert figures["optimizer_bytes"] == 4 * (2 * held + steps)


def test_what_is_not_trained_has_no_gradient() -> None:
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    figures = memory(model, torch.optim.SGD([model.weight], lr=0.1), [])
    assert (figures["parameter_bytes"], figures["gradient_bytes"]) == (4 * 16, 4 * 12)


def test_the_buffer() -> None:
    buffer = ReservoirBuffer(10)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert memory(model, optimizer, [], buffer)["buffer_bytes"] == 0
    inputs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    buffer.add(inputs, torch.zeros(4, dtype=torch.int64), torch.zeros(4, 5), torch.Generator())
    assert memory(model, optimizer, [], buffer)["buffer_bytes"] == 4 * (3 * 8 * 8 + 8 + 4 * 5)
    for _ in range(4):
        buffer.add(inputs, torch.zeros(4, dtype=torch.int64), torch.zeros(4, 5), torch.Generator())
    assert memory(model, optimizer, [], buffer)["buffer_bytes"] == 10 * (3 * 8 * 8 + 8 + 4 * 5)


def test_the_peak_is_of_this_process_alone_and_never_falls() -> None:
    """A child starts small however large its parent, and has the peak of what it held for a moment."""
    ballast = b"\1" * (300 << 20)
    code = (
        "from sparcl.cost.memory import peak_rss_bytes as p\n"
        "before = p(); block = bytearray(64 << 20); block[::4096] = bytes(len(block[::4096])); del block\n"
        "print(before, p())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, out.stdout.split())
    mine = peak_rss_bytes()
    assert mine is not None
    assert 50 << 20 < after - before < 100 << 20
    assert before < mine - len(ballast) // 2
