"""A list of layers (`sparcl.nn.graph`) as plain PyTorch again: what a device's file computes, whoever made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.checkpoint import checks

MOST_NODES, MOST_SIZE, MOST_WEIGHTS = 1 << 16, 1 << 20, 1 << 31
PAIRS = ("stride", "padding", "dilation", "size")

Node = dict[str, Any]


class GraphNetwork(nn.Module):
    """Computes a list of layers, evaluating: [N, ...] in, logits [N, C] out; its state dict has the layers' names."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        super().__init__()
        self.nodes = nodes
        for node in nodes:
            if node["op"] == "convolution":
                outputs, inputs, *size = node["weight"]
                if node["linear"]:
                    made: nn.Module = nn.Linear(inputs, outputs, bias=node["bias"])
                else:
                    geometry = {key: node[key] for key in ("stride", "padding", "dilation", "groups", "bias")}
                    made = nn.Conv2d(inputs * node["groups"], outputs, size, **geometry)
            elif node["op"] == "norm":
                made = nn.BatchNorm2d(node["channels"], node["eps"], node["momentum"])
            else:
                continue
            place: nn.Module = self
            *folders, name = node["name"].split(".")
            for folder in folders:
                if folder not in place._modules:
                    place.add_module(folder, nn.Module())
                place = place.get_submodule(folder)
            place.add_module(name, made)

    def forward(self, samples: Tensor) -> Tensor:
        values = [samples]
        for node in self.nodes:
            x, op = values[node["input"]], node["op"]
            if op == "convolution":
                x = self.get_submodule(node["name"])(x)
            elif op == "norm":
                norm: Any = self.get_submodule(node["name"])
                means, variances = norm.running_mean, norm.running_var
                x = F.batch_norm(x, means, variances, norm.weight, norm.bias, False, 0.0, norm.eps)
                x = x if node["residual"] < 0 else x + values[node["residual"]]
                x = F.relu(x) if node["relu"] else x
            elif op == "add":
                x = x + values[node["residual"]]
            elif op == "relu":
                x = F.relu(x)
            elif op == "flatten":
                x = x.flatten(1)
            elif op == "global_average":
                x = F.adaptive_avg_pool2d(x, 1)
            else:
                pool = F.max_pool2d if op == "max_pool" else F.avg_pool2d
                x = pool(x, node["size"], node["stride"], node["padding"])
            values.append(x)
        return values[-1]


FIELDS: dict[str, tuple[str, ...]] = {
    "convolution": ("weight", "stride", "padding", "dilation", "groups", "linear", "bias"),
    "norm": ("channels", "eps", "momentum", "residual", "relu"),
    "add": ("residual",),
    "relu": (),
    "flatten": (),
    "global_average": (),
    "average_pool": ("size", "stride", "padding"),
    "max_pool": ("size", "stride", "padding"),
}
"""What a node says beside `op`, `name`, `input` and `output`."""


def network(nodes: Any, weights: dict[str, Tensor], sparse: dict[str, tuple[Tensor, Tensor]]) -> GraphNetwork:
    """The network of a file that may come from anyone.

    Args:
        nodes: of `sparcl.nn.graph.graph`.
        weights: dense ones and statistics, by their names in the state dict.
        sparse: values [K] and ascending row-major positions [K], by the layers' names.

    Raises:
        CheckpointError: the three are not well formed, or do not fit each other.
    """
    with checks.refusing("the network"):
        made = _checked(nodes)
        with torch.device("meta"):  # no memory before the shapes are known to be those of the tensors
            network = GraphNetwork(made)
        own, given = network.state_dict(), dict(weights)
        for name, (values, index) in sparse.items():
            given[f"{name}.weight"] = _dense(values, index, own[f"{name}.weight"].shape)
        if missing := sorted(own.keys() ^ given.keys()):
            raise ValueError(f"{missing[0]!r:.80} is in its layers or its weights only")
        for name, want in own.items():
            checks.tensor(given[name], name, want.dtype, tuple(want.shape))
        network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


def _dense(values: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    checks.tensor(values, "values", torch.float32, (None,))
    checks.tensor(index, "index", torch.int32, (len(values),))
    checks.within(index, "index", 0, count - 1)
    return torch.zeros(count).index_put_((index.long(),), values).view(tuple(shape))


def _checked(nodes: Any) -> list[Node]:
    """The nodes, of what is known and no more: plain numbers and names, each reading what was made before it."""
    if not isinstance(nodes, list) or not 0 < len(nodes) <= MOST_NODES:
        raise ValueError("its layers are no list")
    return [_node(node, at) for at, node in enumerate(nodes)]


def _node(node: Any, at: int) -> Node:
    op, name = node["op"], node["name"]
    if op not in FIELDS or not isinstance(name, str) or node["output"] != at + 1:
        raise ValueError(f"layer {at} is not known")
    made: Node = {"op": op, "name": name, "input": _whole(node["input"], 0, at), "output": at + 1}
    for field in FIELDS[op]:
        value = node[field]
        if field in PAIRS or field == "weight":
            if not isinstance(value, list) or len(value) != (4 if field == "weight" else 2):
                raise ValueError(f"{field} of layer {name!r:.80} is no list of sizes")
            made[field] = [_whole(v, 0 if field == "padding" else 1, MOST_SIZE) for v in value]
        elif field in ("linear", "bias", "relu"):
            if not isinstance(value, bool):
                raise ValueError(f"{field} of layer {name!r:.80} is neither true nor false")
            made[field] = value
        elif field in ("eps", "momentum"):
            made[field] = float(value)
            if not 0 <= made[field] <= 1:
                raise ValueError(f"{field} of layer {name!r:.80} is not from 0 to 1")
        else:
            least, most = (-1 if op == "norm" else 0, at) if field == "residual" else (1, MOST_SIZE)
            made[field] = _whole(value, least, most)
    if op == "convolution" and math.prod(made["weight"]) > MOST_WEIGHTS:
        raise ValueError(f"layer {name!r:.80} is too large")
    return made


def _whole(value: Any, least: int, most: int) -> int:
    return checks.integer(value, "a size of a layer", least, most)
