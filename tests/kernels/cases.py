"""Convolutions of awkward shapes, with what PyTorch says about them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from sparcl.kernels import index

# N batch, O output channels, I input channels of a group, K nonzeros
BATCHES = (0, 1, 7, 12, 16, 32, 33)
DENSITIES = (0.0, 0.05, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Case:
    """One convolution: [N, groups * I, H, W] with a weight [O, I, kh, kw], O = groups * out."""

    batch: int
    groups: int
    inputs: int
    out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    density: float
    block: int
    bias: bool
    seed: int

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.groups * self.out, self.inputs, *self.kernel)

    def fits(self) -> bool:
        """Whether the kernel is no larger than the padded input."""
        return (
            all(self.size[a] + 2 * self.padding[a] > self.dilation[a] * (self.kernel[a] - 1) for a in (0, 1))
            and self.out % self.block == 0
        )


@dataclass(frozen=True)
class Expected:
    """Inputs in float32; outputs and gradients in float64, with those of the values in the index's order."""

    index: Tensor
    values: Tensor
    bias: Tensor | None
    x: Tensor
    gy: Tensor
    y: Tensor
    gx: Tensor
    gvalues: Tensor
    gbias: Tensor | None


def expected(case: Case) -> Expected:
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    outs, *rest = case.weight_shape
    mask = torch.rand(outs // case.block, *rest, generator=generator) < case.density
    if case.density < 1:
        mask[0] = False  # output channels without any nonzero
    mask = mask.repeat_interleave(case.block, 0)
    positions = index.index_of(mask)
    values = normal(len(positions))
    weight = torch.zeros(case.weight_shape, dtype=torch.float64)
    weight.view(-1)[positions.long()] = values.double()
    weight.requires_grad_()
    bias = normal(outs) if case.bias else None
    x = normal(case.batch, case.groups * case.inputs, *case.size)
    wide_x = x.double().requires_grad_()
    wide_bias = None if bias is None else bias.double().requires_grad_()
    y = F.conv2d(wide_x, weight, wide_bias, case.stride, case.padding, case.dilation, case.groups)
    gy = normal(*y.shape)
    inputs = [wide_x, weight] + ([] if wide_bias is None else [wide_bias])
    gx, gweight, *gbias = torch.autograd.grad(y, inputs, gy.double())
    gvalues = gweight.reshape(-1)[positions.long()]
    return Expected(positions, values, bias, x, gy, y.detach(), gx, gvalues, gbias[0] if gbias else None)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


convolutions = st.builds(
    Case,
    batch=st.sampled_from(BATCHES),
    groups=st.sampled_from((1, 1, 2, 3)),
    inputs=st.sampled_from((1, 2, 4, 5, 17)),
    out=st.sampled_from((1, 2, 3, 4, 6, 8)),
    size=st.tuples(st.sampled_from((1, 2, 4, 7, 9, 16)), st.sampled_from((1, 3, 4, 8, 13))),
    kernel=st.sampled_from(((1, 1), (3, 3), (3, 3), (2, 2), (5, 3), (1, 3))),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
    dilation=pairs(1, 3),
    density=st.sampled_from(DENSITIES),
    block=st.sampled_from((1, 1, 2, 3, 4, 8)),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
).filter(Case.fits)


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    """max|a - b| <= 1e-4 max|b|."""
    assert actual.shape == wanted.shape
    if wanted.numel():
        error, scale = (actual.double() - wanted.double()).abs().max(), wanted.double().abs().max()
        assert error <= 1e-4 * scale, f"error {error:.3g} of {scale:.3g}"
