"""What a network's `forward` calls, layer by layer (torch.fx), and those calls in the words of PyTorch's own layers."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparcl.errors import ConfigError, one_line
from sparcl.nn.layers import is_watched
from sparcl.nn.norm import is_norm_act


class _Tracer(fx.Tracer):
    """Goes into whatever is not one layer of PyTorch's, told by its `forward`: a subclass may compute anything.

    A linear layer is one of its own kind, too: a Learner's growing head sums in another order.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        where = type(m).forward.__module__
        plain = where.startswith("torch.nn.modules.") and not where.endswith(".container")
        return plain or isinstance(m, nn.Linear) or is_norm_act(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        parts = m.named_modules(prefix=name) if self.is_leaf_module(m, name) else [(name, m)]
        for part, module in parts:
            _check_watched(module, part)
        return super().call_module(m, forward, args, kwargs)


def traced(model: nn.Module, tracer: fx.Tracer, given: dict[str, Any] | None = None) -> tuple[fx.Graph, bool]:
    """What a forward pass calls in training, and whether it calls the same in evaluation.

    Modes and generators stay as they are. A user's forward pass may raise anything on symbols.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            training, evaluating = (tracer.trace(model.train(mode), given) for mode in (True, False))
    finally:
        for module, was in modes:
            module.training = was
    return training, str(training) == str(evaluating)


def trace(model: nn.Module) -> fx.Node:
    """The last call of `model(x)`, of a dense model; `x` is the one input, what else `forward` takes has its default.

    Raises:
        ConfigError: a `forward` that goes by values, needs more than one input, differs between training and
            evaluation, or returns more than one tensor, or none; hooks.
    """
    _check_watched(model, "(the model)")
    try:
        graph, same = traced(model, _Tracer(), _defaults(model))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the network's forward cannot be exported as a list of layers: {one_line(error)}") from error
    if not same:
        raise ConfigError("the network's forward calls other layers in training than in evaluation: not exported")
    found = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(found, fx.Node):
        raise ConfigError(f"the network's forward returns a {type(found).__name__}: one tensor of logits is exported")
    return found


def _check_watched(module: nn.Module, name: str) -> None:
    if is_watched(module):
        raise ConfigError(f"layer {name} has hooks or a forward of its own: it cannot be exported")


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What `forward` takes beside samples, as it is where nobody gives it."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    if needed := [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]:
        raise ConfigError(f"the network's forward needs {needed[0]} beside samples: it cannot be exported")
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def place(node: fx.Node) -> str:
    """The layer, or the one whose `forward` calls a function; "" is the model's own."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def called(node: fx.Node) -> str:
    """What it calls, for messages."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that it adds; None: it does something else."""
    if node.target not in SUMS or len(node.args) != 2 or node.kwargs:
        return None
    one, other = node.args
    return (one, other) if isinstance(one, fx.Node) and isinstance(other, fx.Node) else None


def layers(node: fx.Node) -> list[nn.Module] | None:
    """The layers of PyTorch that do what a function or a tensor's method does to its first argument; None: none do."""
    make = FUNCTIONS.get(node.target)
    source, *given = node.args or (None,)
    if make is None or not isinstance(source, fx.Node):
        return None
    try:
        return make(*(_plain(v, source) for v in given), **{k: _plain(v, source) for k, v in node.kwargs.items()})
    except TypeError:  # arguments that the layer has not
        return None


class _Size(int):
    """The size of axis 0, the batch, or of an axis of the tensor itself: a number that is known only with the input."""


def _plain(value: Any, tensor: fx.Node) -> Any:
    """An argument of what is done to `tensor` [N, C, H, W], without calls in it: a size becomes `_Size(axis)`."""
    if isinstance(value, tuple | list):
        return type(value)(_plain(v, tensor) for v in value)
    if not isinstance(value, fx.Node):
        return value
    of, axis = _sized(value)
    if axis == slice(2, None, None) and of is tensor:
        return (_Size(2), _Size(3))
    if axis == 0 or (of is tensor and axis in (2, 3, -2, -1)):
        return _Size(axis % 4)
    raise TypeError


def _sized(call: fx.Node) -> tuple[Any, Any]:
    """Of which tensor a call gives the size, and along which axis: `x.size(0)`, `x.size()[0]`, `x.shape[0]`."""
    if call.target == "size" and len(call.args) == 2:
        return call.args
    shape = call.args[0] if call.target is operator.getitem else None
    if not isinstance(shape, fx.Node):
        return None, None
    asked = (shape.target == "size" and len(shape.args) == 1) or (shape.target is getattr and shape.args[1] == "shape")
    return (shape.args[0], call.args[1]) if asked else (None, None)


def _relu(inplace: bool = False) -> list[nn.Module]:
    return [nn.ReLU(inplace)]


def _same() -> list[nn.Module]:
    return []


def _flatten(start_dim: int = 0, end_dim: int = -1) -> list[nn.Module]:
    return [nn.Flatten(start_dim, end_dim)]


def _view(*shape: Any) -> list[nn.Module]:
    """[N, ...] as [N, F]: what else a view does is none of these layers."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if len(sizes) != 2:
        raise TypeError
    rows, columns = sizes
    is_batch = rows == -1 or (isinstance(rows, _Size) and rows == 0)
    if not is_batch or isinstance(columns, _Size) or (columns == -1 and rows == -1):
        raise TypeError
    return [nn.Flatten()]


def _mean(dim: Any = None, keepdim: bool = False) -> list[nn.Module]:
    axes = dim if isinstance(dim, tuple | list) else (dim,)
    if any(isinstance(a, _Size) or a not in (2, 3, -1, -2) for a in axes) or {a % 4 for a in axes} != {2, 3}:
        raise TypeError
    return [nn.AdaptiveAvgPool2d(1)] + ([] if keepdim else [nn.Flatten()])


def _adaptive_average(output_size: Any) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(output_size)]


def _average(kernel_size: Any, *more: Any, **options: Any) -> list[nn.Module]:
    sizes = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,)
    if all(isinstance(size, _Size) and size for size in sizes) and not (more or options):
        return [nn.AdaptiveAvgPool2d(1)]
    if any(isinstance(size, _Size) for size in sizes):
        raise TypeError
    return [nn.AvgPool2d(kernel_size, *more, **options)]


def _maximum(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[nn.Module]:
    if isinstance(kernel_size, _Size):
        raise TypeError
    return [nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)]


SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
FUNCTIONS: dict[Any, Callable[..., list[nn.Module]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys(("view", "reshape", torch.reshape), _view),
    **dict.fromkeys(("mean", torch.mean), _mean),
    "contiguous": _same,
    F.adaptive_avg_pool2d: _adaptive_average,
    F.avg_pool2d: _average,
    F.max_pool2d: _maximum,
}
"""By what torch.fx records of a call: a function, or the name of a tensor's method."""
