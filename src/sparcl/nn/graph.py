"""A network as a list of layers: what a program without Python needs to compute it, and no code.

Tensors are numbered in the order in which they are made; 0 is the input. Each node names its layer, so that its weights
are found by the names of the dense model's state dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparcl.errors import ConfigError, one_line, out_of_memory, shown
from sparcl.nn.dense import dense_model
from sparcl.nn.from_graph import GraphNetwork
from sparcl.nn.norm import is_norm_act
from sparcl.nn.trace import called, layers, place, summands, trace
from sparcl.whole import is_whole

Node = dict[str, Any]
LAYERS = "Conv2d, Linear, BatchNorm, ReLU, AvgPool2d, MaxPool2d, AdaptiveAvgPool2d(1), Flatten, sums of two"


def graph(model: nn.Module, input_shape: Sequence[int] | None = None) -> list[Node]:
    """The layers of any network whose `forward` calls what `LAYERS` names, in whatever order; dense or converted.

    Nodes have `op`, `name`, `input` and `output` (numbers of tensors), and by op:
    convolution: `weight` [O, I/groups, kh, kw], `stride`, `padding`, `dilation`, `groups`, `bias`; a linear layer is
    one of 1×1, `linear`, behind a flatten. norm: `channels`, `eps`, `momentum`, `residual` (a tensor that is added, or
    -1), `relu`. add: `residual`, the other summand. relu, flatten, global_average: nothing more. average_pool,
    max_pool: `size`, `stride`, `padding`.

    Args:
        model: it stays as it is.
        input_shape: of one sample, [C, H, W] or [F]: the list's logits of some are compared with the model's.

    Raises:
        ConfigError: a layer that is none of these, by its name; a `forward` that cannot be traced; another answer.
    """
    dense = dense_model(model)
    nodes = _Nodes(dense)
    nodes.emit(trace(dense))
    if input_shape is not None:
        _check(nodes.made, dense, input_shape)
    return nodes.made


def _check(nodes: list[Node], dense: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a list of layers that computes something else: a `forward` may do what a trace does not show."""
    listed = GraphNetwork(nodes)
    names = listed.state_dict().keys()
    listed.load_state_dict({name: tensor for name, tensor in dense.state_dict().items() if name in names})
    if not all(is_whole(size, 1, 2**31 - 1) for size in input_shape):
        raise ConfigError(f"input shape {list(input_shape)!s:.60} is not allowed; use sizes of 1 or more")
    samples = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            want, found = dense.eval()(samples), listed.eval()(samples)
    except (RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        shape = list(input_shape)
        raise ConfigError(f"the network does not take samples {shape}: not exported ({one_line(error)})") from error
    near = 1e-3 * float(want.abs().max().nan_to_num(posinf=0.0))
    if want.shape != found.shape or not torch.allclose(found, want, rtol=1e-3, atol=near, equal_nan=True):
        raise ConfigError("the network computes something else than the layers that its forward calls: not exported")


class _Nodes:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.made: list[Node] = []
        self.numbers: dict[fx.Node, int] = {}
        self.read_again: set[int] = set()
        """Tensors that more than one call reads: nothing may be merged into them."""
        self.owners: dict[int, str] = {}
        self.named: set[str] = set()

    def emit(self, last: fx.Node) -> None:
        """Append what `last` needs and itself, each call behind what it reads."""
        waiting = [last]
        while waiting:
            call = waiting[-1]
            missing = [read for read in self._reads(call) if read not in self.numbers]
            if missing:
                waiting.append(missing[0])
                continue
            waiting.pop()
            if call not in self.numbers:
                self.numbers[call] = self._compute(call)
                if len(call.users) > 1:
                    self.read_again.add(self.numbers[call])

    def _reads(self, call: fx.Node) -> list[fx.Node]:
        """The tensors that it reads, in the order in which they are made."""
        if call.op == "placeholder":
            return []
        pair = summands(call)
        if pair is None:
            return [arg for arg in call.args[:1] if isinstance(arg, fx.Node)]
        host, beside = self._host(*pair)
        return list(pair) if host is None else [cast(fx.Node, host.args[0]), beside]

    def _host(self, one: fx.Node, other: fx.Node) -> tuple[fx.Node | None, fx.Node]:
        """Of two summands the norm that can add the other one on its way, or None; and the other one."""
        for host, beside in ((one, other), (other, one)):
            if host is not beside and len(host.users) == 1 and self._is_norm(host):
                return host, beside
        return None, other

    def _is_norm(self, call: fx.Node) -> bool:
        return call.op == "call_module" and type(self._module(call)).forward is _BatchNorm.forward and bool(call.args)

    def _module(self, call: fx.Node) -> nn.Module:
        return self.model.get_submodule(str(call.target))

    def _compute(self, call: fx.Node) -> int:
        """Append what one call computes; returns the number of its result."""
        if call.op == "placeholder":
            return 0
        if (pair := summands(call)) is not None:
            return self._sum(call, *pair)
        if call.op == "call_module" and len(call.args) == 1 and not call.kwargs:
            return self._layer(self._module(call), str(call.target), self._number(call))
        steps = layers(call)
        if steps is None:
            where = place(call) or "(the model)"
            raise ConfigError(f"layer {where} computes {called(call)}, which no device can; allowed: {LAYERS}")
        x = self._number(call)
        for step in steps:
            x = self._layer(step, place(call), x)
        return x

    def _number(self, call: fx.Node) -> int:
        return self.numbers[cast(fx.Node, call.args[0])]

    def _sum(self, call: fx.Node, one: fx.Node, other: fx.Node) -> int:
        host, beside = self._host(one, other)
        if host is None:
            return self.add("add", place(call), self.numbers[one], residual=self.numbers[other])
        return self._norm(self._module(host), str(host.target), self._number(host), residual=self.numbers[beside])

    def add(self, op: str, name: str, source: int, **figures: Any) -> int:
        output = len(self.made) + 1
        self.made.append({"op": op, "name": name, "input": source, "output": output, **figures})
        return output

    def _own(self, module: nn.Module, name: str) -> None:
        """Refuse weights that have been met before: a device would train a copy."""
        if name in self.named:
            raise ConfigError(f"layer {name} is computed twice, and a device would train a copy: not exported")
        self.named.add(name)
        for parameter in module.parameters():
            if (owner := self.owners.setdefault(id(parameter), name)) != name:
                raise ConfigError(f"layer {name} shares its weights with layer {owner}: not exported")

    def _layer(self, module: nn.Module, name: str, x: int) -> int:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            return self._weighted(module, name, x)
        if is_norm_act(module):
            parts = cast(Any, module)
            return self._layer(parts.act, f"{name}.act", self._layer(parts.drop, name, self._norm(module, name, x)))
        if isinstance(module, _BatchNorm):
            return self._norm(module, name, x)
        return self._plain(module, name, x)

    def _plain(self, module: nn.Module, name: str, x: int) -> int:
        if isinstance(module, nn.ReLU):
            before: Node = self.made[x - 1] if x else {"op": "input"}
            if before["op"] == "norm" and not before["relu"] and x not in self.read_again:
                before["relu"] = True  # one pass over memory instead of two
                return x
            return self.add("relu", name, x)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return self.add("flatten", name, x)
        if isinstance(module, nn.Identity):
            return x
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1]):
            return self.add("global_average", name, x)
        if (
            isinstance(module, nn.MaxPool2d)
            and not (module.ceil_mode or module.return_indices)
            and _pair(module.dilation) == [1, 1]
        ):
            return self._pool("max_pool", module, name, x)
        if isinstance(module, nn.AvgPool2d) and (module.ceil_mode, module.divisor_override) == (False, None):
            if _pair(module.padding) == [0, 0]:
                return self._pool("average_pool", module, name, x)
            raise ConfigError(
                f"layer {name or '(a function)'} is an average with padding, which a device cannot compute"
            )
        raise ConfigError(
            f"layer {name or '(a function)'} is a {shown(module, 100)} that no device can compute; allowed: {LAYERS}"
        )

    def _pool(self, op: str, module: nn.MaxPool2d | nn.AvgPool2d, name: str, x: int) -> int:
        size = _pair(module.kernel_size)
        stride = size if module.stride is None else _pair(module.stride)
        return self.add(op, name, x, size=size, stride=stride, padding=_pair(module.padding))

    def _weighted(self, module: nn.Linear | nn.Conv1d | nn.Conv2d, name: str, x: int) -> int:
        self._own(module, name)
        shape = list(module.weight.shape)
        if isinstance(module, nn.Conv1d):
            raise ConfigError(f"layer {name} is a Conv1d that no device can compute; allowed: {LAYERS}")
        if getattr(module, "padding_mode", "zeros") != "zeros" or isinstance(getattr(module, "padding", 0), str):
            raise ConfigError(f"layer {name} has padding that a device cannot compute; allowed: numbers, with zeros")
        geometry = {key: _pair(getattr(module, key, default)) for key, default in GEOMETRY.items()}
        linear = isinstance(module, nn.Linear)
        if linear and not self._is_flat(x):
            raise ConfigError(f"layer {name} is a Linear on images: it cannot be exported without a Flatten before it")
        figures = {"weight": shape + [1] * (4 - len(shape)), "groups": getattr(module, "groups", 1), "linear": linear}
        return self.add("convolution", name, x, **figures, **geometry, bias=module.bias is not None)

    def _is_flat(self, x: int) -> bool:
        """Whether tensor x may be [N, F]; of the input nothing is known."""
        if not x:
            return True
        node = self.made[x - 1]
        if node["op"] in ("relu", "norm", "add"):
            return self._is_flat(node["input"])
        return node["op"] == "flatten" or bool(node.get("linear"))

    def _norm(self, module: nn.Module, name: str, x: int, residual: int = -1) -> int:
        self._own(module, name)
        layer = cast(Any, module)
        for has, what in ((layer.weight, "weights"), (layer.running_mean, "statistics"), (layer.momentum, "momentum")):
            if has is None:
                raise ConfigError(f"layer {name} is a norm without {what}: it cannot be exported")
        figures = {"eps": float(layer.eps), "momentum": float(layer.momentum), "channels": layer.num_features}
        return self.add("norm", name, x, **figures, residual=residual, relu=False)


GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * 2
