"""Networks, and how a layer is made sparse. Any `nn.Module` of your own works as well as these."""

from collections.abc import Callable

from torch import nn

from sparcl import named
from sparcl.errors import ConfigError, unknown
from sparcl.nn.block import residual_block as residual_block
from sparcl.nn.layers import MaskedLayer as MaskedLayer
from sparcl.nn.layers import SparseLayer as SparseLayer
from sparcl.nn.layers import prunable_names as prunable_names
from sparcl.nn.layers import sparse_layers as sparse_layers
from sparcl.nn.norm import norm_relu as norm_relu
from sparcl.nn.resnet import ACTIVATIONS as ACTIVATIONS
from sparcl.nn.resnet import BFLOAT16 as BFLOAT16
from sparcl.nn.resnet import FLOAT32 as FLOAT32
from sparcl.nn.resnet import ResNet as ResNet
from sparcl.nn.resnet import in_halves as in_halves
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

AUTO = "auto"
"""The name of a network by the shape of its inputs: resnet18 for images, mlp for all else."""


def chosen(name: str, input_shape: tuple[int, ...], width: int | None = None) -> tuple[str, int | None]:
    """Name and width of the network that is meant: `auto` goes by `input_shape`, no width is the usual one."""
    if name == AUTO:
        name = "resnet18" if len(input_shape) == 3 else "mlp"
    return name, DEFAULT_WIDTH.get(name) if width is None else width


def build(
    name: str,
    classes: int,
    input_shape: tuple[int, ...],
    width: int | None = None,
    activations: str = FLOAT32,
) -> nn.Module:
    """A network by name, for inputs of `input_shape` (C, H, W).

    Args:
        name: one of `MODELS`; `auto`: resnet18 for images, mlp otherwise; or your own callable as
            `package.module:name`, called with those of `classes`, `input_shape` and a given `width` that it takes.
        activations: of resnet18, see `ResNet`.

    Raises:
        ConfigError: an unknown name, a width below 1, or an input that the network does not take; your callable fails
            or gives no `nn.Module`.
    """
    if width is not None and width < 1:
        raise ConfigError(f"model width {width} is not allowed; use 1 or more")
    if activations != FLOAT32 and chosen(name, input_shape)[0] != "resnet18":
        raise ConfigError(f"activations {activations} are of model resnet18 alone, not of {name}: leave them out")
    if named.is_own(name):
        given = {} if width is None else {"width": width}
        made = named.make("model", name, given=given, usual={"classes": classes, "input_shape": input_shape})
        if not isinstance(made, nn.Module):
            raise ConfigError(f"model {name} gives a {type(made).__name__}; an nn.Module is needed")
        return made
    name, width = chosen(name, input_shape, width)
    if name not in MODELS:
        raise ConfigError(unknown("model", name, [AUTO, *MODELS, "package.module:name"]))
    if name != "mlp" and len(input_shape) != 3:
        raise ConfigError(f"model {name} takes images [C, H, W], not inputs of shape {list(input_shape)}; use mlp")
    width = width or DEFAULT_WIDTH[name]
    if activations != FLOAT32:
        return resnet18(classes, input_shape[0], width, activations)
    return MODELS[name](classes, input_shape, width)
