"""Writes cases and what PyTorch says about them in float64, for replay.cpp beside it, where there is no Python.

    python tests/kernels/write_cases.py FILE [--convolutions 500] [--layers 60]

The file is a stream of little-endian int32 and float32, in the order of the `put` calls below.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn.functional as F
from cases import DENSITIES, Case, expected
from torch import Tensor

CONVOLUTION, NORM, MAXIMUM, AVERAGE = range(4)


def put(file: BinaryIO, *parts: int | float | Tensor | None) -> None:
    """Integers, floats and tensors as they are; 4-D tensors [N, C, H, W] as [C, H, W, N]; None as nothing."""
    for part in parts:
        if isinstance(part, float):
            part = torch.tensor([part], dtype=torch.float32)
        elif isinstance(part, int):
            part = torch.tensor([part], dtype=torch.int32)
        if part is None:
            continue
        part = part.permute(1, 2, 3, 0) if part.dim() == 4 else part
        part = part.to(torch.float32) if part.is_floating_point() else part.to(torch.int32)
        file.write(part.detach().contiguous().numpy().tobytes())


def random_case(rng: random.Random) -> Case:
    def pair(*values: int) -> tuple[int, int]:
        return (rng.choice(values), rng.choice(values))

    while True:
        case = Case(
            batch=rng.choice((0, 1, 7, 12, 16, 32, 33)),
            groups=rng.choice((1, 1, 2, 3)),
            inputs=rng.choice((1, 2, 4, 5, 9)),
            out=rng.choice((1, 2, 3, 4, 6, 8)),
            size=(rng.choice((1, 2, 4, 7, 9)), rng.choice((1, 3, 4, 8))),
            kernel=rng.choice(((1, 1), (3, 3), (3, 3), (2, 2), (5, 3), (1, 3))),
            stride=pair(1, 1, 2, 3),
            padding=pair(0, 1, 2),
            dilation=pair(1, 1, 2),
            density=rng.choice(DENSITIES),
            block=rng.choice((1, 1, 2, 3, 4, 8)),
            bias=rng.random() < 0.5,
            seed=rng.randrange(2**31),
        )
        if case.fits():
            return case


def put_convolution(file: BinaryIO, case: Case) -> None:
    want = expected(case)
    chosen = (torch.rand(len(want.index), generator=torch.Generator().manual_seed(case.seed)) < 0.5).int()
    sizes = (case.batch, case.groups * case.inputs, *case.size)
    geometry = (*case.stride, *case.padding, *case.dilation, case.groups, case.block, int(case.bias))
    put(file, CONVOLUTION, *sizes, *case.weight_shape, *geometry, len(want.index), want.index, chosen)
    put(file, want.values, want.bias, want.x, want.gy, want.y, want.gx, want.gvalues, want.gbias)


def put_norm(file: BinaryIO, rng: random.Random) -> None:
    shape = (rng.choice((8, 12, 33)), rng.choice((1, 3, 5)), rng.choice((1, 4, 7)), rng.choice((1, 3, 5)))
    training, relu, with_residual = (rng.random() < 0.5 for _ in range(3))
    x = (torch.randn(shape) * 2 + rng.choice((0.0, 50.0))).double().float()
    residual = torch.randn(shape) if with_residual else None
    gamma, beta, mean, var = (torch.randn(shape[1]) for _ in range(4))
    var = var.abs() + 0.5
    wide = [t.double().requires_grad_() for t in (x, gamma, beta)]
    running = [mean.double(), var.double()]
    y = F.batch_norm(wide[0], *running, wide[1], wide[2], training, 0.1, 1e-5)
    y = y if residual is None else y + residual
    y = F.relu(y) if relu else y
    gy = torch.randn(shape) * (y.detach().abs() > 1e-3)
    grads = torch.autograd.grad(y, wide, gy.double())
    put(file, NORM, *shape, int(training), int(relu), int(with_residual))
    put(file, x, residual, gamma, beta, mean, var, gy, y, *running, *grads)


def put_pool(file: BinaryIO, rng: random.Random, kind: int) -> None:
    size, stride = ((rng.choice((1, 2, 3)), rng.choice((1, 2, 3))) for _ in range(2))
    padding = (size[0] // 2, size[1] // 2) if kind == MAXIMUM else (0, 0)
    shape = (rng.choice((0, 1, 7, 16, 33)), rng.choice((1, 3)), rng.choice((3, 4, 7)), rng.choice((3, 5)))
    x = torch.randn(shape)
    wide = x.double().requires_grad_()
    y = F.max_pool2d(wide, size, stride, padding) if kind == MAXIMUM else F.avg_pool2d(wide, size, stride)
    gy = torch.randn(y.shape)
    (gx,) = torch.autograd.grad(y, wide, gy.double())
    put(file, kind, *shape, *size, *stride, *padding, x, gy, y, gx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--convolutions", type=int, default=500)
    parser.add_argument("--layers", type=int, default=60, help="of each of BatchNorm, maximum and average pooling")
    options = parser.parse_args()
    rng = random.Random(0)
    torch.manual_seed(0)
    with options.file.open("wb") as file:
        put(file, options.convolutions + 3 * options.layers)
        for _ in range(options.convolutions):
            put_convolution(file, random_case(rng))
        for _ in range(options.layers):
            put_norm(file, rng)
            put_pool(file, rng, MAXIMUM)
            put_pool(file, rng, AVERAGE)


if __name__ == "__main__":
    main()
