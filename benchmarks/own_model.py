"""A ResNet-18 of somebody else's, converted: what its code costs as it is, and what two functions of sparcl gain in it.

    python benchmarks/own_model.py --sparsity 0.95

A training step (forward, backward, SGD) at batch 32, CIFAR shapes, width 64, unstructured. `plain` is written as most
networks are: `F.relu(bn(conv(x)))`. `norm_relu` and `residual_block` are the same network with these functions in its
blocks: the same weights, the same result. The sides take turns; medians.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.nn import convert, norm_relu, residual_block
from sparcl.nn.block import BasicBlock
from sparcl.run.bench import Side, Step, milliseconds
from sparcl.sparsity.static import Static


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


class WithResidualBlock(BasicBlock):
    """The same, the whole block at once."""

    def forward(self, x: Tensor) -> Tensor:
        return residual_block(x, self.conv1, self.bn1, self.conv2, self.bn2, self.shortcut)


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


def step_of(block: type[BasicBlock], sparsity: float, batch: int) -> Step:
    """A training step of the converted network."""
    torch.manual_seed(0)
    model = convert.to_native(Network(block))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    Static(sparsity).attach(model, optimizer)
    inputs, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = Side("channels_last", threads=options.threads, batch=options.batch)
    steps = {
        "dense, channels_last": base.build()[1],
        "plain": step_of(Plain, options.sparsity, options.batch),
        "norm_relu": step_of(WithNormRelu, options.sparsity, options.batch),
        "residual_block": step_of(WithResidualBlock, options.sparsity, options.batch),
        "sparcl.nn.resnet18": Side("native", options.sparsity, threads=options.threads, batch=options.batch).build()[1],
    }
    times = milliseconds(steps, options.seconds)
    for name, taken in times.items():
        print(f"{name:22} {taken:7.1f} ms {times['dense, channels_last'] / taken:6.2f}x")


if __name__ == "__main__":
    main()
