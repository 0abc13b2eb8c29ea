"""ResNet-18 with the CIFAR stem (He et al., 2016): the network of the published experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.nn.block import BasicBlock, residual_network
from sparcl.nn.sizes import check_sizes
from sparcl.recorded import Recorded
from sparcl.whole import is_whole


class ResNet(Recorded, nn.Module):
    """Stem, four stages of basic blocks, global average pooling, classifier. [N, C, H, W] in, [N, classes] out.

    Raises:
        ConfigError: sizes that no network can have.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": ("conv1", "bn1")}
    """What may be called by one name (`Learner(freeze=...)`)."""

    def __init__(self, blocks: tuple[int, int, int, int], channels: int, classes: int, width: int) -> None:
        check_sizes(self, classes, channels=channels, width=width)
        if not isinstance(blocks, Sequence) or len(blocks) != 4 or not all(map(is_whole, blocks)):
            raise ConfigError(f"blocks {blocks!r:.40} are not allowed for ResNet; use four whole numbers of 1 or more")
        super().__init__()
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
        pooled = residual_network(x, self.conv1, self.bn1, stages, self.avgpool)
        logits: Tensor = self.fc(pooled)
        return logits


def resnet18(classes: int, channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-18; `width` 64 is the published one (11,173,962 parameters for 10 classes)."""
    return ResNet((2, 2, 2, 2), channels, classes, width)
