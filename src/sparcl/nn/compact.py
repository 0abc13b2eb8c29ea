"""Compact layers: the native backend's convolution and linear layer, without a dense weight.

Legend: K active weights of a layer, O output channels, I input channels, N batch. A *position* is an index into the
flattened (row-major) dense weight.

A compact layer holds its active weights (`values` [K], an ordinary Parameter) and their positions (`weight_index` [K]).
No dense weight, gradient or optimizer state of it exists. It is its own `SparseLayer`: TDM, DGM and the rivals drive it
as they drive the reference backend's `MaskedLayer`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparcl.errors import ConfigError
from sparcl.kernels import ops
from sparcl.kernels.allocator import return_freed_memory
from sparcl.nn.layers import elementwise_state, fresh_state
from sparcl.nn.positions import carried, common

BLOCKS = (4, 2)
"""Output channels that the kernels take together where they share their positions, the best first."""


MOST_STRIDE, MOST_REACH = 64, 4096
"""Of a convolution that the kernels compute (csrc/engine/plan.cpp): stride, kernel, padding and dilation."""


class CompactLayer(nn.Module, ABC):
    """What a compact convolution and a compact linear layer share: the active weights, and their coming and going.

    Made from a dense layer, all of whose weights are active at first and keep their memory.

    Attributes:
        name: as the model calls the layer (`SparseLayer`).
        shape: of the dense weight, [O, I/groups, kh, kw], [O, I/groups, k] or [O, I].
        values: float32 [K], the active weights in ascending order of their positions.
        weight_index: int32 [K], their positions, ascending.
        bias: float32 [O], or None.
    """

    weight_index: Tensor
    moved_alone: bool = False
    """Whether the positions came with a state dict, of which no optimizer knows."""

    def __init__(self, dense: nn.Conv1d | nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        weight = dense.weight
        self.name = ""
        self.shape = tuple(weight.shape)
        self.values = nn.Parameter(weight.detach().reshape(-1), requires_grad=weight.requires_grad)
        self.register_buffer("weight_index", torch.arange(weight.numel(), dtype=torch.int32))
        self.bias = dense.bias
        self._chosen: Tensor | None = None
        self._kept: Tensor | None = None  # int32 [K]: all ones for the chosen, zero for the frozen
        self._computes_frozen = False
        self._plan: Any = None
        self._was_planned = False

    # --- SparseLayer --------------------------------------------------------------------------------------------

    @property
    def parameter(self) -> nn.Parameter:
        """The active weights."""
        return self.values

    @property
    def index(self) -> Tensor:
        """Active positions, int64 [K], ascending."""
        return self.weight_index.long()

    @property
    def chosen(self) -> Tensor | None:
        """Bool [K]: the active weights that are updated; None when all are."""
        return self._chosen

    def gather(self, like_parameter: Tensor) -> Tensor:
        """A copy [K] of a tensor laid out like `values`."""
        return like_parameter.detach().clone()

    @torch.no_grad()
    def set_index(self, index: Tensor, optimizer: torch.optim.Optimizer | None = None) -> tuple[Tensor, Tensor]:
        """Make `index` (ascending) the active set. Survivors keep weight and optimizer state, newcomers start fresh.
        Returned is where the survivors were, and where they are (`positions.common`).

        `values` stays the same Parameter, of another length; its gradient is cleared.
        """
        size = math.prod(self.shape)
        if len(index) > 0 and not 0 <= int(index[0]) <= int(index[-1]) < size:
            raise ConfigError(f"layer {self.name}: active positions must lie in 0..{size - 1}")
        if len(self.weight_index) == size:  # every one survives, and the many positions need no memory
            in_old, in_new = index, torch.arange(len(index))
        else:
            in_old, in_new = common(self.index, index, size)

        states = {} if optimizer is None else elementwise_state(optimizer, self.values)
        for key, state in states.items():
            assert optimizer is not None
            fresh = fresh_state(optimizer, self.values, key)
            optimizer.state[self.values][key] = carried(state, in_old, in_new, len(index), fresh)
        _replace(self.values, carried(self.values, in_old, in_new, len(index), 0.0))
        self.weight_index = index.to(torch.int32, copy=True)
        self.moved_alone = False
        self._plan = None
        self.set_chosen(None)
        return in_old, in_new

    def set_chosen(self, chosen: Tensor | None) -> None:
        """Choose which active weights, bool [K], are updated from now on (None: all)."""
        if chosen is not None and bool(chosen.all()):
            chosen = None
        self._chosen = chosen
        self._kept = None if chosen is None else chosen.to(torch.int32).neg_()
        self._tell_plan()

    def compute_frozen(self, on: bool) -> None:
        """Whether the gradient of what is not chosen is computed all the same, until `mask_gradient` clears it."""
        if on != self._computes_frozen:
            self._computes_frozen = on
            self._tell_plan()

    def _tell_plan(self) -> None:
        if self._plan is not None:
            chosen = None if self._computes_frozen else self._chosen
            self._plan.set_chosen(None if chosen is None else chosen.to(torch.uint8))

    def frozen_entries(self) -> Tensor | None:
        """Places in `values` of the active weights that are not chosen; None when there is none."""
        return None if self._chosen is None else (~self._chosen).nonzero().squeeze(1)

    def mask_gradient(self) -> None:
        """Clear the gradient of what is not chosen: not computed by the kernel, but a method may have added to it."""
        if self._kept is not None and self.values.grad is not None:
            self.values.grad.view(torch.int32).bitwise_and_(self._kept)  # ten times faster than `masked_fill_`

    def dense_gradient(self, inputs: Tensor, output_gradient: Tensor) -> Tensor:
        """∂L/∂W, of W's shape, at every position, active or not, from one call's input and gradient at its output."""
        with torch.enable_grad():
            weight = torch.zeros(self.shape, dtype=self.values.dtype, requires_grad=True)
            output = self._dense_forward(inputs.detach(), weight)
        return torch.autograd.grad(output, weight, output_gradient)[0]

    # --- the layer ----------------------------------------------------------------------------------------------

    def dense_weight(self) -> Tensor:
        """The dense weight, a new tensor of `shape` with zeros at the inactive positions."""
        return self.weight.detach()

    @property
    def weight(self) -> Tensor:
        """As `dense_weight`, but gradients reach `values` through it: for code that reads a layer's weight itself, such
        as `nn.TransformerEncoderLayer`. Writing into it changes nothing.
        """
        dense = torch.zeros(math.prod(self.shape), dtype=self.values.dtype)
        return dense.index_put((self.index,), self.values).view(self.shape)

    @property
    def plan(self) -> Any:
        """What the kernels know of the positions; made at the first use after they changed."""
        if self._plan is None:
            if not self._was_planned:  # a dense model has just become compact
                return_freed_memory()
            self._plan, self._was_planned = self._make_plan(), True
            self._tell_plan()
        return self._plan

    @abstractmethod
    def _make_plan(self) -> Any:
        """The kernels' plan of the present positions."""

    @abstractmethod
    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's result with a dense weight."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a plan of its own."""
        return {**self.__dict__, "_plan": None}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take over another number of active weights as well."""
        index = state_dict.get(prefix + "weight_index")
        if index is not None and not torch.equal(index, self.weight_index):
            if index.dim() != 1 or bool((index[1:] <= index[:-1]).any()):
                raise ConfigError(f"layer {self.name}: weight_index must hold ascending positions")
            self.set_index(index)
            self.moved_alone = True
        super()._load_from_state_dict(cast(dict[str, Any], state_dict), prefix, *args)


class CompactConv(CompactLayer):
    """A sparse convolution that computes its active weights only; arguments as the dense layer's, zero padding."""

    def __init__(self, dense: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(dense)
        self.in_channels, self.out_channels, self.groups = dense.in_channels, dense.out_channels, dense.groups
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding, self.padding_mode = explicit_padding(dense), dense.padding_mode

    def _make_plan(self) -> Any:
        block = shared_block(self.weight_index, self.shape, self.groups)
        sizes = self.stride, self.padding, self.dilation
        return ops.conv_plan(self.weight_index, self.shape, *sizes, self.groups, block)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride},"
            f" padding={self.padding}, groups={self.groups}, active={len(self.values)} of {math.prod(self.shape)}"
        )


class CompactConv2d(CompactConv):
    """`nn.Conv2d`, compact. float32 [N, I, H, W] of any strides, on the CPU; the result is batch-last."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sparse_conv2d(x, self.values, self.plan, self.bias)

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class CompactConv1d(CompactConv):
    """`nn.Conv1d`, compact: an image of one row. float32 [N, I, L], on the CPU; the result is batch-last."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sparse_conv1d(x, self.values, self.plan, self.bias)

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class CompactLinear(CompactLayer):
    """A sparse linear layer that computes its active weights only. Inputs float32 [..., I], results [..., O]."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = ops.sparse_linear(rows, self.values, self.plan, self.bias)
        return y.contiguous().view(*x.shape[:-1], self.out_features)

    def _make_plan(self) -> Any:
        return ops.linear_plan(
            self.weight_index, cast(tuple[int, int], self.shape), shared_block(self.weight_index, self.shape, 1)
        )

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, active={len(self.values)} of {math.prod(self.shape)}"


class BatchLastConv(_ConvNd):
    """A dense convolution computed in batch-last layout, so that stem and shortcuts force no change of layout."""

    _plan: Any = None

    @classmethod
    def of(cls, dense: nn.Conv1d | nn.Conv2d) -> Self:
        """The same layer, sharing its parameters."""
        layer = cls.__new__(cls)
        layer.__dict__ = {key: value for key, value in dense.__dict__.items() if key != "_sparse_layer"}
        layer.padding = explicit_padding(dense)
        return layer

    @property
    def plan(self) -> Any:
        """What the kernels know of the weight: every position is in it."""
        if self._plan is None:
            index = torch.arange(self.weight.numel(), dtype=torch.int32)
            sizes = self.stride, cast(tuple[int, ...], self.padding), self.dilation
            self._plan = ops.conv_plan(index, tuple(self.weight.shape), *sizes, self.groups)
        return self._plan

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a plan of its own."""
        return {**self.__dict__, "_plan": None}


class BatchLastConv2d(BatchLastConv, nn.Conv2d):
    """`nn.Conv2d` in batch-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sparse_conv2d(x, self.weight, self.plan, self.bias)


class BatchLastConv1d(BatchLastConv, nn.Conv1d):
    """`nn.Conv1d` in batch-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sparse_conv1d(x, self.weight, self.plan, self.bias)


def compact_layer(dense: nn.Module) -> CompactLayer:
    """The compact counterpart of a layer that `has_kernel`."""
    if isinstance(dense, nn.Conv2d):
        return CompactConv2d(dense)
    return CompactConv1d(dense) if isinstance(dense, nn.Conv1d) else CompactLinear(cast(nn.Linear, dense))


def batch_last_layer(dense: nn.Module) -> nn.Module | None:
    """The batch-last counterpart of a layer that `has_kernel` and stays dense; None for a linear one."""
    if isinstance(dense, nn.Conv2d):
        return BatchLastConv2d.of(dense)
    return BatchLastConv1d.of(dense) if isinstance(dense, nn.Conv1d) else None


def explicit_padding(dense: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Padding in numbers where it may be given as a word."""
    if isinstance(dense.padding, str):
        spans = (d * (k - 1) for d, k in zip(dense.dilation, dense.kernel_size, strict=True))
        return tuple(span // 2 if dense.padding == "same" else 0 for span in spans)
    return tuple(dense.padding)


def has_kernel(module: nn.Module) -> bool:
    """If the kernels compute this: Conv1d, Conv2d or Linear, no subclass, even zero padding, ordinary sizes."""
    if type(module) is nn.Linear:
        return True
    if not (type(module) is nn.Conv2d or type(module) is nn.Conv1d) or module.padding_mode != "zeros":
        return False
    reach = max(*module.kernel_size, *module.dilation, *explicit_padding(module))
    if max(module.stride) > MOST_STRIDE or reach > MOST_REACH:
        return False
    spans = (d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return module.padding != "same" or all(span % 2 == 0 for span in spans)


def shared_block(index: Tensor, shape: tuple[int, ...], groups: int) -> int:
    """How many consecutive output channels share their positions throughout, of `BLOCKS`; 1 where not even two do."""
    per_channel = math.prod(shape[1:])
    channels = torch.arange(shape[0] + 1, dtype=torch.int32)
    start = torch.searchsorted(index, channels * per_channel)  # of each output channel's positions in `index`
    counts = start.diff()
    for block in BLOCKS:
        if (shape[0] // groups) % block:
            continue
        rows = counts.view(-1, block)
        if not torch.equal(rows, rows[:, :1].expand_as(rows)):
            continue
        first = start[:-1].view(-1, block)[:, :1].expand_as(rows).reshape(-1)
        within = index - torch.repeat_interleave(channels[:-1] * per_channel, counts)
        of_first = torch.arange(len(index)) - torch.repeat_interleave(start[:-1] - first, counts)
        if torch.equal(within, within[of_first]):
            return block
    return 1


def _replace(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a Parameter other values, of another length.

    A graph that is still alive (the caller's last loss) holds on to the Parameter's gradient accumulator, which knows
    its old length and would refuse the next backward pass. A passing change of type makes PyTorch forget it.
    """
    parameter.grad = None
    parameter.data = torch.empty(0, dtype=torch.float64)
    parameter.data = values
