"""ResNet-18 with the CIFAR stem (He et al., 2016): the network of the published experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from sparcl.errors import ConfigError, unknown
from sparcl.nn.block import BasicBlock, residual_network
from sparcl.nn.sizes import check_sizes
from sparcl.recorded import Recorded
from sparcl.whole import is_whole

FLOAT32, BFLOAT16 = "float32", "bfloat16"
ACTIVATIONS = (FLOAT32, BFLOAT16)
"""How what one layer leaves for the next, and the gradients of it, may lie in memory."""


class ResNet(Recorded, nn.Module):
    """Stem, four stages of basic blocks, global average pooling, classifier. [N, C, H, W] in, [N, classes] out.

    Args:
        blocks: of each stage.
        channels, classes, width: of the input, the answer and the first layer.
        activations: float32; or bfloat16, half the memory and a tenth less time: every result of a convolution and of
            a block, and each gradient of one, is rounded as it is written. Sums, statistics and weights stay float32.
            It is for native training passes of N a multiple of 16; all others are float32 (docs/engine.md).

    Raises:
        ConfigError: sizes that no network can have, or other activations.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": ("conv1", "bn1")}
    """What may be called by one name (`Learner(freeze=...)`)."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        channels: int,
        classes: int,
        width: int,
        activations: str = FLOAT32,
    ) -> None:
        check_sizes(self, classes, channels=channels, width=width)
        if not isinstance(blocks, Sequence) or len(blocks) != 4 or not all(map(is_whole, blocks)):
            raise ConfigError(f"blocks {blocks!r:.40} are not allowed for ResNet; use four whole numbers of 1 or more")
        super().__init__()
        if activations not in ACTIVATIONS:
            raise ConfigError(unknown("activations", activations, ACTIVATIONS))
        self.activations = activations
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        stages = [cast(nn.Module, self._modules[f"layer{stage}"]) for stage in range(1, 5)]
        pooled = residual_network(x, self.conv1, self.bn1, stages, self.avgpool, in_halves(self))
        logits: Tensor = self.fc(pooled)
        return logits


def resnet18(classes: int, channels: int = 3, width: int = 64, activations: str = FLOAT32) -> ResNet:
    """ResNet-18; `width` 64 is the published one (11,173,962 parameters for 10 classes). `activations`: see ResNet."""
    usual = activations == FLOAT32  # what is not given is in no checkpoint
    return ResNet((2, 2, 2, 2), channels, classes, width, *(() if usual else (activations,)))


def in_halves(model: nn.Module) -> bool:
    """Whether a model keeps its activations in bfloat16; of another's own `activations` nothing is known."""
    return isinstance(model, ResNet) and model.activations == BFLOAT16
