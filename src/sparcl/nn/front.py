"""A model cut in two: a frozen front, computed once per sample, and the rest, which trains on what comes out of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparcl.errors import ConfigError, one_line
from sparcl.nn.layers import is_watched
from sparcl.nn.trace import traced

PLAIN = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Identity, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""Modules without weights that answer a sample the same at all times: they may stand in the front."""

DRAWS = ("dropout", "rand", "bernoulli", "multinomial", "normal_", "uniform_")
"""In the names of functions that draw."""

ALLOWED = "latents need a frozen part through which all of the input goes, into one tensor"


def cut(model: nn.Module, frozen: Collection[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """(front, rest) of a model: rest(front(x)) is model(x), of the very same layers under the same names.

    Found by a symbolic trace. The front is all that can be computed of the input with frozen modules, and with what has
    no weights and draws nothing.

    Args:
        model: as it is defined, not converted; it stays as it is.
        frozen: its outermost frozen modules.

    Raises:
        ConfigError: the model cannot be traced or looks at its mode, the frozen modules are not at its front, what they
            give is not one tensor, or what they answer to a sample depends on the batch.
    """
    if is_watched(model):
        raise ConfigError(f"{ALLOWED}: the model has hooks or a forward of its own, which would be passed by")
    nodes = _traced(model, {id(module) for module in frozen})
    front = _front(model, nodes, {id(module) for module in frozen})
    last = _single_end(nodes, front)
    first, rest = fx.Graph(), fx.Graph()
    placeholder = next(node for node in nodes if node.op == "placeholder")
    made: dict[fx.Node, fx.Node] = {placeholder: first.placeholder("inputs")}
    behind: dict[fx.Node, fx.Node] = {last: rest.placeholder("latents")}
    for node in nodes:
        if node in front and node is not placeholder:
            made[node] = first.node_copy(node, made.__getitem__)
        elif node not in front:
            behind[node] = rest.node_copy(node, behind.__getitem__)
    first.output(made[last])
    parts = fx.GraphModule(model, first, "Front"), fx.GraphModule(model, rest, "Rest")
    for part in parts:
        _in_order_of(model, part)
    return parts


class _Tracer(fx.Tracer):
    """Goes only into modules of which a part is frozen, and a part is not."""

    def __init__(self, frozen: Collection[int]) -> None:
        super().__init__()
        self.frozen = frozen

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return id(m) in self.frozen or not any(id(part) in self.frozen for part in m.modules())


def _traced(model: nn.Module, frozen: Collection[int]) -> list[fx.Node]:
    """The operations of a forward pass, in order."""
    try:
        graph, same = traced(model, _Tracer(frozen))
    except Exception as error:
        raise ConfigError(f"{ALLOWED}, found by tracing, and the model cannot be traced: {one_line(error)}") from None
    nodes = list(graph.nodes)
    if not same:
        raise ConfigError(f"{ALLOWED}: the model's forward pass is another one in training than in evaluation")
    if sum(node.op == "placeholder" for node in nodes) != 1:
        raise ConfigError(f"{ALLOWED}: the model takes more than one input")
    return nodes


def _front(model: nn.Module, nodes: list[fx.Node], frozen: Collection[int]) -> set[fx.Node]:
    front: set[fx.Node] = set()
    parts = 0
    for node in nodes:
        if node.op == "placeholder" or (
            node.op != "output" and all(n in front for n in node.all_input_nodes) and _is_still(model, node, frozen)
        ):
            front.add(node)
            parts += node.op == "call_module" and id(model.get_submodule(str(node.target))) in frozen
    if not parts:
        raise ConfigError(f"{ALLOWED}: nothing that is frozen stands at the front of the model")
    return front


def _is_still(model: nn.Module, node: fx.Node, frozen: Collection[int]) -> bool:
    """Whether a node's answer to its inputs never changes."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        for part in module.modules() if id(module) in frozen else ():
            if isinstance(part, _BatchNorm) and part.running_mean is None:
                raise ConfigError(f"{ALLOWED}: {node.target} normalises by the batch's own statistics")
        return id(module) in frozen or (type(module) in PLAIN and not is_watched(module))
    if node.op == "get_attr":
        value: Any = model
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return isinstance(value, nn.Parameter) and not value.requires_grad
    name = getattr(node.target, "__name__", str(node.target))
    return not any(word in name for word in DRAWS)


def _single_end(nodes: list[fx.Node], front: set[fx.Node]) -> fx.Node:
    """The one node of the front that the rest reads; what else it would read is computed of that, behind it."""
    while True:
        ends = [node for node in nodes if node in front and any(user not in front for user in node.users)]
        if any(node.op == "placeholder" for node in ends):
            raise ConfigError(f"{ALLOWED}: a part that is not frozen reads the input itself")
        if len(ends) == 1:
            return ends[0]
        movable = [node for node in ends if node.op in ("call_function", "call_method")]
        if not movable:
            names = ", ".join(str(node.target) for node in ends[:3])
            raise ConfigError(f"{ALLOWED}: the rest reads {len(ends)} results of it ({names})")
        front.discard(movable[-1])


def _in_order_of(model: nn.Module, part: nn.Module) -> None:
    """Give a part's modules the order that they have in the model: the last layer is taken for the classifier."""
    part._modules = {name: part._modules[name] for name in model._modules if name in part._modules}
    part._parameters = {name: part._parameters[name] for name in model._parameters if name in part._parameters}
    for name, module in part._modules.items():
        whole = model._modules[name]
        if module is not None and whole is not None and module is not whole:
            _in_order_of(whole, module)
