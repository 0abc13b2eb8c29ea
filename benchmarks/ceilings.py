"""What a step could take if only arithmetic and memory counted: `python benchmarks/ceilings.py [--compile]`.

ResNet-18, CIFAR shapes, batch 32, forward, backward and SGD's update. The machine's two ceilings are measured beside
the steps, in turn with them: PyTorch's fastest dense convolution of the network's sizes, and a sum of two tensors of
64 MB into a third. The operations are those of the step; the bytes are those of a step that reads and writes each
activation once a pass, as the native engine's passes are laid out, whatever the caches may keep of them.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.nn import build
from sparcl.nn.block import BasicBlock
from sparcl.run.bench import CLASSES, DENSE_VARIANTS, INPUT_SHAPES, Side, Step, milliseconds

CHANNELS, PIXELS = 128, 16
"""Of the dense convolution (channels_last, 3×3); those of 64, 256 and 512 channels are slower."""

SUM = 16 << 20
"""Floats of each tensor."""


def least_bytes(side: Side) -> int:
    """Of activations, read or written by a training step.

    For a convolution and its norm, from a floats to b: forward reads a, writes b and reads b for the statistics;
    backward reads the gradient and b and writes b (norm), reads b and a and writes a (convolution). A block's result
    costs three more: the shortcut read and the sum written, and the shortcut's gradient read.
    """
    model = build(side.model, CLASSES, INPUT_SHAPES[side.model], side.width)
    floats = 0

    def convolution(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal floats
        floats += 3 * inputs[0].numel() + 6 * output.numel()

    def block(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal floats
        floats += 3 * output.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, BasicBlock):
            module.register_forward_hook(block)
    with torch.no_grad():
        model(torch.zeros(side.batch, *INPUT_SHAPES[side.model]))
    return 4 * floats


def main() -> None:
    """Parse, time everything in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    base = Side("nchw", threads=options.threads, batch=32)
    variants = [name for name in DENSE_VARIANTS if options.compile or name != "compile"]
    dense = {name: replace(base, variant=name) for name in variants}
    native = {
        f"{pattern} {sparsity:.2f}": replace(base, variant="native", sparsity=sparsity, pattern=pattern)
        for pattern in ("unstructured", "block")
        for sparsity in (0.75, 0.90, 0.95)
    }
    image = torch.randn(base.batch, CHANNELS, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).contiguous(memory_format=torch.channels_last)
    x, y, z = (torch.randn(SUM) for _ in range(3))
    ceilings: dict[str, Step] = {
        "convolution": lambda: F.conv2d(image, weight, padding=1),
        "sum": lambda: torch.add(x, y, out=z),
    }
    steps = {name: side.build()[1] for name, side in {**dense, **native}.items()}
    times = milliseconds({**ceilings, **steps}, options.seconds)
    flops = 2 * image.numel() * CHANNELS * 9 / times["convolution"]  # in a millisecond
    memory = 3 * 4 * SUM / times["sum"]
    fastest = min(dense, key=times.__getitem__)
    print(f"convolution {flops / 1e6:.0f} GFLOP/s, sum {memory / 1e6:.0f} GB/s; dense is {fastest}")
    moved = least_bytes(base)
    for name, side in {fastest: base, **native}.items():
        done = side.flops()[0 if name == fastest else 1]
        arithmetic, passes = done / flops, moved / memory
        print(
            f"{name:18} {done / 1e9:6.1f} GFLOP {arithmetic:6.1f} ms + {moved / 1e9:.2f} GB {passes:5.1f} ms"
            f" = {arithmetic + passes:6.1f} ms ({times[fastest] / (arithmetic + passes):5.2f}x);"
            f" measured {times[name]:6.1f} ms ({times[fastest] / times[name]:5.2f}x)"
        )


if __name__ == "__main__":
    main()
