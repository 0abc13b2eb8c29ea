"""Each convolution of ResNet-18 (CIFAR form), forward and both gradients: sparse against dense PyTorch.

Sides alternate, medians.

    python benchmarks/layers.py --sparsity 0.75 0.90 0.95 --pattern unstructured block --threads 2

GFLOP/s count the multiply-adds really done, two operations each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparcl import kernels
from sparcl.kernels import index, layout, ops


class Layer(NamedTuple):
    """A convolution: channels in and out, rows of its input, stride, kernel, how often the network has it."""

    inputs: int
    out: int
    size: int
    stride: int
    kernel: int
    count: int

    def __str__(self) -> str:
        return f"{self.inputs:3}->{self.out:3} {self.size:2}x{self.size:<2} k{self.kernel} s{self.stride}"


SPARSE = [
    Layer(64, 64, 32, 1, 3, 4),
    Layer(64, 128, 32, 2, 3, 1),
    Layer(128, 128, 16, 1, 3, 3),
    Layer(128, 256, 16, 2, 3, 1),
    Layer(256, 256, 8, 1, 3, 3),
    Layer(256, 512, 8, 2, 3, 1),
    Layer(512, 512, 4, 1, 3, 3),
]
DENSE = [
    Layer(3, 64, 32, 1, 3, 1),
    Layer(64, 128, 32, 2, 1, 1),
    Layer(128, 256, 16, 2, 1, 1),
    Layer(256, 512, 8, 2, 1, 1),
]
PASSES = {"forward": 1, "both gradients": 2}  # multiply-adds of each weight at a position
Side = tuple[list[Callable[[], object]], int]


def dense_side(layer: Layer, batch: int, memory_format: torch.memory_format) -> Side:
    """Both passes of PyTorch's convolution, and the multiply-adds of one."""
    x = torch.randn(batch, layer.inputs, layer.size, layer.size).contiguous(memory_format=memory_format)
    weight = torch.randn(layer.out, layer.inputs, layer.kernel, layer.kernel).contiguous(memory_format=memory_format)
    stride, padding = [layer.stride] * 2, [layer.kernel // 2] * 2
    y = torch.conv2d(x, weight, None, stride, padding)

    def backward() -> object:
        return torch.ops.aten.convolution_backward(
            y, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [True, True, False]
        )

    passes = [lambda: torch.conv2d(x, weight, None, stride, padding), backward]
    return passes, weight.numel() * y.numel() // layer.out


def sparse_side(layer: Layer, batch: int, sparsity: float, block: int) -> Side:
    """Both passes of the native convolution, and the multiply-adds of one."""
    shape = (layer.out, layer.inputs, layer.kernel, layer.kernel)
    mask = (torch.rand(shape[0] // block, *shape[1:]) >= sparsity).repeat_interleave(block, 0)
    positions = index.index_of(mask)
    pad = layer.kernel // 2
    plan = ops.conv_plan(positions, shape, (layer.stride,) * 2, (pad, pad), block=block)
    values = torch.randn(len(positions))
    size = (layer.size + 2 * pad - layer.kernel) // layer.stride + 1
    x = layout.repacked(torch.randn(batch, layer.inputs, layer.size, layer.size))
    gy = layout.repacked(torch.randn(batch, layer.out, size, size))
    threads = torch.get_num_threads()

    def backward() -> object:
        source = (x, None, None, None, False)
        return plan.backward(gy, x.shape, values, *source, True, True, False, threads)

    passes = [lambda: plan.forward(x, values, None, threads), backward]
    return passes, len(positions) * size * size * batch


def alternating_medians(runs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of each, run in turn so that a slow moment of the machine hits all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 2):
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if repeat >= 2:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def measure(layers: list[Layer], sparsity: float, block: int, batch: int, repeats: int) -> None:
    names = ("NCHW", "channels_last", "native")
    totals = torch.zeros(len(PASSES), 3)
    print(f"{'ms: ' + ' / '.join(names):32}" + "".join(f"{p:>28} {'GFLOP/s':>8}" for p in PASSES))
    for layer in layers:
        sides = [
            dense_side(layer, batch, torch.contiguous_format),
            dense_side(layer, batch, torch.channels_last),
            sparse_side(layer, batch, sparsity, block),
        ]
        line = f"{f'{layer} x{layer.count}':32}"
        for p, times in enumerate(PASSES.values()):
            seconds = alternating_medians([passes[p] for passes, _ in sides], repeats)
            totals[p] += Tensor([s * layer.count for s in seconds])
            rate = 2e-9 * times * sides[2][1] / seconds[2]
            line += f"{' / '.join(f'{1e3 * s:6.2f}' for s in seconds):>28} {rate:8.0f}"
        print(line, flush=True)
    for p, name in enumerate(PASSES):
        ms = [1e3 * float(t) for t in totals[p]]
        print(f"  {name}: " + ", ".join(f"{n} {m:.1f} ms" for n, m in zip(names, ms, strict=True)))
    dense, native = float(totals[:, :2].sum(0).min()), float(totals[:, 2].sum())
    print(f"  all passes: {1e3 * native:.1f} ms, {dense / native:.1f} times the faster dense side\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.75, 0.90, 0.95])
    parser.add_argument("--pattern", nargs="+", choices=("unstructured", "block"), default=["unstructured", "block"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{kernels.isa()}, {options.threads} threads, batch {options.batch}\n\nlayers that stay dense")
    measure(DENSE, 0.0, 1, options.batch, options.repeats)
    for pattern in options.pattern:
        for sparsity in options.sparsity:
            print(f"{pattern}, sparsity {sparsity}")
            measure(SPARSE, sparsity, 4 if pattern == "block" else 1, options.batch, options.repeats)


if __name__ == "__main__":
    main()
