"""Networks, and how a layer is made sparse. Any `nn.Module` of your own works as well as these."""

from collections.abc import Callable

from torch import nn

from sparcl.errors import ConfigError, unknown
from sparcl.nn.block import residual_block as residual_block
from sparcl.nn.layers import MaskedLayer as MaskedLayer
from sparcl.nn.layers import SparseLayer as SparseLayer
from sparcl.nn.layers import prunable_names as prunable_names
from sparcl.nn.layers import sparse_layers as sparse_layers
from sparcl.nn.norm import norm_relu as norm_relu
from sparcl.nn.resnet import ResNet as ResNet
from sparcl.nn.resnet import resnet18 as resnet18
from sparcl.nn.small import MLP as MLP
from sparcl.nn.small import ConvNet as ConvNet

MODELS: dict[str, Callable[[int, tuple[int, ...], int], nn.Module]] = {
    "resnet18": lambda classes, shape, width: resnet18(classes, shape[0], width),
    "convnet": lambda classes, shape, width: ConvNet(classes, shape[0], width),
    "mlp": lambda classes, shape, width: MLP(classes, shape, width),
}
"""By name: (classes, input_shape, width) -> network."""

DEFAULT_WIDTH = {"resnet18": 64, "convnet": 32, "mlp": 100}


def build(name: str, classes: int, input_shape: tuple[int, ...], width: int | None = None) -> nn.Module:
    """A network by name, for inputs of `input_shape` (C, H, W).

    Raises:
        ConfigError: an unknown name, a width below 1, or an input that the network does not take.
    """
    if name not in MODELS:
        raise ConfigError(unknown("model", name, MODELS))
    if width is not None and width < 1:
        raise ConfigError(f"model width {width} is not allowed; use 1 or more")
    if name != "mlp" and len(input_shape) != 3:
        raise ConfigError(f"model {name} takes images [C, H, W], not inputs of shape {list(input_shape)}; use mlp")
    return MODELS[name](classes, input_shape, width or DEFAULT_WIDTH[name])
