"""The code that goes with an exported state dict: the networks of this package in plain PyTorch, by no import of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from sparcl import named
from sparcl import nn as networks
from sparcl.methods.icarl import NearestMean
from sparcl.methods.respond import classifier
from sparcl.nn.from_graph import GraphNetwork
from sparcl.run.answering import Answering

FIRST = '"""Answers of a trained network; needs torch and safetensors'

HEAD = (
    FIRST
    + '''{needs}, nothing else.

    from NAME_OF_THIS_FILE import CLASSES, load

    model = load()
    probabilities = model(samples).softmax(dim=1)  # samples: {dtype} [N, {shape}], as stored: not normalised
    names = [CLASSES[k] for k in probabilities.argmax(dim=1)]
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

CLASSES = {names}
MEAN, STD = {mean}, {std}  # of samples {scale}
COLUMNS = {columns}  # of the network's logits, those of CLASSES

'''
)

RESNET = '''
class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """With the CIFAR stem (He et al., 2016)."""

    def __init__(self, channels, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def network():
    return ResNet18({channels}, {width}, {classes})
'''

CONVNET = """
def network():
    layers = []
    for inputs, outputs, stride in (({channels}, {w}, 1), ({w}, {w}, 1), ({w}, {w2}, 2), ({w2}, {w2}, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({w2}, {classes}))
"""

MLP = """
def network():
    hidden = [nn.Linear({inputs}, {width}), nn.ReLU(), nn.Linear({width}, {width}), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear({width}, {classes}))
"""

OWN = """
def network():
    import {module}

    return {module}.{path}({arguments})
"""

GRAPH = """
from typing import Any

from torch import Tensor

NODES = {nodes}


{source}

def network():
    return GraphNetwork(NODES)
"""

BY_LOGITS = '''

class Answers(nn.Module):
    """Samples as stored, {dtype} [N, {shape}] -> logits [N, {count}]."""

    def __init__(self, state):
        super().__init__()
        self.network = network()
        self.network.load_state_dict(state)
{normalize}
    def forward(self, samples):
        return self.network(samples.to(torch.float32) * self.scale - self.shift)[:, COLUMNS]
'''

BY_MEANS = '''

class Answers(nn.Module):
    """Samples as stored, {dtype} [N, {shape}] -> minus the squared distance to each class's mean feature, [N, {count}].

    iCaRL answers by the nearest mean of exemplars, not by the classifier (Rebuffi et al., 2017).
    """

    def __init__(self, state):
        super().__init__()
        self.register_buffer("means", state.pop("means"))
        self.register_buffer("place", state.pop("place"))
        self.features = network()
        self.features.set_submodule("{head}", nn.Identity())
        self.features.load_state_dict(state)
{normalize}
    def forward(self, samples):
        x = self.features(samples.to(torch.float32) * self.scale - self.shift)
        distances = (F.normalize(x.flatten(1), dim=1).unsqueeze(1) - self.means).square().sum(dim=2)
        return F.pad(-distances, (0, 1), value=float("-inf"))[:, self.place][:, COLUMNS]
'''

NORMALIZE = """        mean, std = (torch.tensor(v, dtype=torch.float64).view({axes}) for v in (MEAN, STD))
        self.register_buffer("scale", (1 / (std * {most})).float())
        self.register_buffer("shift", (mean / std).float())
"""

TAIL = '''

def load(file=Path(__file__).with_suffix(".safetensors")):
    """The network, evaluating."""
    return Answers(load_file(file)).eval()
'''


def state(network: nn.Module) -> dict[str, Tensor]:
    """What the file beside the code holds: the network's state dict, and the class means where they answer."""
    if isinstance(network, NearestMean):
        own: dict[str, Tensor] = network.features.state_dict()
        return {**own, "means": network.means, "place": network.place}
    return network.state_dict()


def module(answering: Answering, network: nn.Module, names: Sequence[str], columns: Sequence[int]) -> str:
    """The text of the module; names come in as ASCII literals, so that none of them is code.

    Args:
        answering: the run.
        network: what answers, see `Method.as_network`.
        names, columns: of the classes asked for.
    """
    shape, name = answering.input_shape, str(answering.model)
    own = f" and {name.partition(':')[0]}, your own" if named.is_own(name) else ""
    known = {
        "needs": own,
        "dtype": "uint8" if answering.pixels else "float32",
        "scale": "from 0 to 1" if answering.pixels else "as they are",
        "shape": ", ".join(map(str, shape)),
        "count": len(names),
        "mean": list(answering.normalize.mean),
        "std": list(answering.normalize.std),
        "columns": list(columns),
        "most": 255 if answering.pixels else 1,
        "axes": ", ".join(map(str, (-1, *(1 for _ in shape[1:])))),
        "normalize": "",
        "head": "",
    }
    if isinstance(network, NearestMean):
        head = classifier(answering.network)
        known["head"] = next(name for name, part in answering.network.named_modules() if part is head)
    code = HEAD.format(**known, names="{names}").replace("{names}", ascii(list(names)))
    code += _network(answering, name)
    known["normalize"] = NORMALIZE.format(**known)
    if isinstance(network, NearestMean):
        of = answering.network
        known["head"] = next(name for name, part in of.named_modules() if part is classifier(of))
    code += (BY_MEANS if isinstance(network, NearestMean) else BY_LOGITS).format(**known)
    return code + TAIL


def _network(answering: Answering, name: str) -> str:
    """Code of the function `network`."""
    if isinstance(answering.network, GraphNetwork):
        return GRAPH.format(source=inspect.getsource(GraphNetwork), nodes=ascii(answering.network.nodes))
    return _own(answering, name) if named.is_own(name) else _ours(answering, name)


def _ours(answering: Answering, name: str) -> str:
    """The code of a network of this package."""
    shape, classes = answering.input_shape, len(answering.names)
    name, width = networks.chosen(name, shape, answering.width)
    assert width is not None
    first = cast(nn.Linear, next(m for m in answering.network.modules() if hasattr(m, "weight")))
    sizes = {"channels": shape[0], "width": width, "classes": classes, "w": width, "w2": 2 * width}
    return {"resnet18": RESNET, "convnet": CONVNET, "mlp": MLP}[name].format(**sizes, inputs=first.weight.shape[1])


def _own(answering: Answering, name: str) -> str:
    """A call of what made the user's own network, as `nn.build` makes it."""
    module, _, path = name.partition(":")
    called, width = named.find("model", name), answering.width
    usual = {"classes": len(answering.names), "input_shape": answering.input_shape}
    passed = {k: v for k, v in usual.items() if named.takes(called, k)} | ({} if width is None else {"width": width})
    return OWN.format(module=module, path=path, arguments=", ".join(f"{k}={v}" for k, v in passed.items()))
