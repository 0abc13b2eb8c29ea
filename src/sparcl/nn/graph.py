"""A network as a list of layers: what a program without Python needs to compute it, and no code.

Tensors are numbered in the order in which they are made; 0 is the input. Each node names its layer, so that its weights
are found by the names of the dense model's state dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparcl.errors import ConfigError
from sparcl.nn.block import BasicBlock
from sparcl.nn.compact import BatchLastConv1d, BatchLastConv2d, CompactConv1d, CompactConv2d, CompactLinear
from sparcl.nn.convert import is_converted
from sparcl.nn.layers import is_watched
from sparcl.nn.norm import BatchLastNorm1d, BatchLastNorm2d, MergingSequential
from sparcl.nn.resnet import ResNet

Node = dict[str, Any]
LAYERS = "Conv2d, Linear, BatchNorm, ReLU, AvgPool2d, MaxPool2d, AdaptiveAvgPool2d(1), Flatten, Sequential, ResNet"


def graph(model: nn.Module) -> list[Node]:
    """The layers of a ResNet, ConvNet, MLP or any `nn.Sequential` of what `LAYERS` names, dense or converted.

    Nodes have `op`, `name`, `input` and `output` (numbers of tensors), and by op:
    convolution: `weight` [O, I/groups, kh, kw], `stride`, `padding`, `dilation`, `groups`, `bias`; a linear layer is
    one of 1×1, `linear`, behind a flatten. norm: `channels`, `eps`, `momentum`, `residual` (a tensor that is added, or
    -1), `relu`. relu, flatten, global_average: nothing more. average_pool, max_pool: `size`, `stride`, `padding`.

    Raises:
        ConfigError: a layer that is none of these, by its name.
    """
    nodes = _Nodes()
    nodes.walk(model, "", 0)
    return nodes.made


class _Nodes:
    def __init__(self) -> None:
        self.made: list[Node] = []
        self.owners: dict[int, str] = {}
        self.named: set[str] = set()

    def _own(self, module: nn.Module, name: str) -> None:
        """Refuse weights that have been met before: a device would train a copy."""
        for parameter in module.parameters():
            if self.owners.setdefault(id(parameter), name) != name or name in self.named:
                raise ConfigError(
                    f"layer {name} shares its weights with layer {self.owners[id(parameter)]}: not exported"
                )
        self.named.add(name)

    def add(self, op: str, name: str, source: int, **figures: Any) -> int:
        output = len(self.made) + 1
        self.made.append({"op": op, "name": name, "input": source, "output": output, **figures})
        return output

    def walk(self, module: nn.Module, name: str, x: int) -> int:
        """Append what `module` computes of tensor x; returns the number of its result."""
        if is_watched(module) and not (name == "" and is_converted(module)):
            raise ConfigError(f"layer {name or '(the model)'} has hooks or a forward of its own: it cannot be exported")
        if isinstance(module, ResNet):
            return self._resnet(module, x)
        if isinstance(module, BasicBlock):
            return self._block(module, name, x)
        if isinstance(module, nn.Sequential) and type(module).forward in SEQUENCES:
            children = [(child, inner) for child, inner in module._modules.items()]
            return self._sequence(children, name, x)
        if isinstance(module, nn.Linear) or type(module).forward in WEIGHTED:
            return self._weighted(module, name, x)
        if type(module).forward in NORMS:
            return self.norm(module, name, x)
        return self._plain(module, name, x)

    def _plain(self, module: nn.Module, name: str, x: int) -> int:
        if isinstance(module, nn.ReLU):
            if self.made and x == len(self.made) and self.made[-1]["op"] == "norm" and not self.made[-1]["relu"]:
                self.made[-1]["relu"] = True  # one pass over memory instead of two
                return x
            return self.add("relu", name, x)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return self.add("flatten", name, x)
        if isinstance(module, nn.Identity):
            return x
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
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
            raise ConfigError(f"layer {name} is an average with padding, which a device cannot compute")
        raise ConfigError(
            f"layer {name or '(the model)'} is a {type(module).__name__} that no device can compute; allowed: {LAYERS}"
        )

    def _pool(self, op: str, module: nn.MaxPool2d | nn.AvgPool2d, name: str, x: int) -> int:
        size = _pair(module.kernel_size)
        stride = size if module.stride is None else _pair(module.stride)
        return self.add(op, name, x, size=size, stride=stride, padding=_pair(module.padding))

    def _sequence(self, children: Sequence[tuple[str, nn.Module]], name: str, x: int) -> int:
        for child, module in children:
            x = self.walk(module, f"{name}.{child}" if name else child, x)
        return x

    def _weighted(self, module: nn.Module, name: str, x: int) -> int:
        self._own(module, name)
        layer = cast(Any, module)
        shape = list(getattr(layer, "shape", None) or layer.weight.shape)
        if len(shape) == 3:
            raise ConfigError(f"layer {name} is a Conv1d that no device can compute; allowed: {LAYERS}")
        if getattr(layer, "padding_mode", "zeros") != "zeros" or isinstance(getattr(layer, "padding", 0), str):
            raise ConfigError(f"layer {name} has padding that a device cannot compute; allowed: numbers, with zeros")
        geometry = {key: _pair(getattr(layer, key, default)) for key, default in GEOMETRY.items()}
        groups = getattr(layer, "groups", 1)
        linear = len(shape) == 2
        if linear and x and not self._is_flat(x):
            raise ConfigError(f"layer {name} is a Linear on images: it cannot be exported without a Flatten before it")
        figures = {"weight": shape + [1] * (4 - len(shape)), "groups": groups, "linear": linear}
        return self.add("convolution", name, x, **figures, **geometry, bias=layer.bias is not None)

    def _is_flat(self, x: int) -> bool:
        """Whether tensor x is [N, F] for sure."""
        node: Node = self.made[x - 1] if x else {"op": "input"}
        if node["op"] in ("relu", "norm"):
            return self._is_flat(node["input"])
        return node["op"] == "flatten" or bool(node.get("linear"))

    def norm(self, module: nn.Module, name: str, x: int, relu: bool = False, residual: int = -1) -> int:
        self._own(module, name)
        layer = cast(Any, module)
        if layer.weight is None or layer.running_mean is None or layer.momentum is None:
            raise ConfigError(f"layer {name} is a norm without weights, statistics or momentum: it cannot be exported")
        figures = {"eps": float(layer.eps), "momentum": float(layer.momentum), "channels": layer.num_features}
        return self.add("norm", name, x, **figures, residual=residual, relu=relu)

    def _resnet(self, model: ResNet, x: int) -> int:
        x = self.norm(model.bn1, "bn1", self._weighted(model.conv1, "conv1", x), relu=True)
        for stage in range(1, 5):
            x = self.walk(cast(nn.Module, model._modules[f"layer{stage}"]), f"layer{stage}", x)
        x = self.walk(model.avgpool, "avgpool", x)
        return self._weighted(model.fc, "fc", self.add("flatten", "", x))

    def _block(self, block: BasicBlock, name: str, x: int) -> int:
        y = self.norm(block.bn1, f"{name}.bn1", self._weighted(block.conv1, f"{name}.conv1", x), relu=True)
        y = self._weighted(block.conv2, f"{name}.conv2", y)
        beside = self.walk(block.shortcut, f"{name}.shortcut", x)
        return self.norm(block.bn2, f"{name}.bn2", y, relu=True, residual=beside)


NATIVE = (BatchLastConv1d, BatchLastConv2d, CompactConv1d, CompactConv2d, CompactLinear)
SEQUENCES = (nn.Sequential.forward, MergingSequential.forward)
WEIGHTED = tuple(kind.forward for kind in (nn.Conv1d, nn.Conv2d, *NATIVE))
NORMS = tuple(kind.forward for kind in (_BatchNorm, BatchLastNorm1d, BatchLastNorm2d))
"""Known by what they compute: a subclass with a forward of its own may compute anything."""
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * 2
