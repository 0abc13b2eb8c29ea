"""A ResNet-18 of somebody else's, converted: what its code costs as it is, and what two functions of sparcl gain in it.

    python benchmarks/own_model.py --sparsity 0.95

A training step (forward, backward, SGD) at batch 32, CIFAR shapes, width 64, unstructured. `plain` is written as most
networks are: `F.relu(bn(conv(x)))`. `norm_relu` and `residual_block` are the same network with these functions in its
blocks: the same weights, the same result. The sides take turns; medians.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.nn import norm_relu
from sparcl.nn.block import BasicBlock
from sparcl.run.bench import Side, Step, milliseconds


class Plain(BasicBlock):
    """A basic block as most people write it."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


class WithNormRelu(BasicBlock):
    """The same, each BatchNorm with what follows it."""

    def forward(self, x: Tensor) -> Tensor:
        y = norm_relu(self.bn1, self.conv1(x))
        return norm_relu(self.bn2, self.conv2(y), self.shortcut(x))


class Network(nn.Module):
    """ResNet-18 of blocks of one kind."""

    def __init__(self, block: type[BasicBlock]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        self.layers, inputs = nn.Sequential(), 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            self.layers.extend((block(inputs, outputs, stride), block(outputs, outputs, 1)))
            inputs = outputs
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return logits


def step_of(block: type[BasicBlock], side: Side) -> Step:
    """A training step of the network of such blocks."""
    torch.manual_seed(0)
    return side.step_of(Network(block))


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = Side("channels_last", threads=options.threads, batch=options.batch)
    native = replace(dense, variant="native", sparsity=options.sparsity)
    steps = {
        "dense, channels_last": dense.build()[1],
        "plain": step_of(Plain, native),
        "norm_relu": step_of(WithNormRelu, native),
        "residual_block": step_of(BasicBlock, native),  # sparcl's own basic block is that call
        "sparcl.nn.resnet18": native.build()[1],
    }
    times = milliseconds(steps, options.seconds)
    for name, taken in times.items():
        print(f"{name:22} {taken:7.1f} ms {times['dense, channels_last'] / taken:6.2f}x")


if __name__ == "__main__":
    main()
