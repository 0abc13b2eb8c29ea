"""Small networks for small devices and small images: a ConvNet and an MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from sparcl.nn.sizes import check_sizes, checked_shape
from sparcl.recorded import Recorded


class ConvNet(Recorded, nn.Sequential):
    """conv-bn-relu × 4 with one stride of 2, global average pooling, classifier.

    On 8×8 digits at width 32 the three inner convolutions, the prunable ones, hold over 95 % of the FLOPs.
    [N, C, H, W] in, [N, classes] out.

    Raises:
        ConfigError: sizes that no network can have.
    """

    def __init__(self, classes: int, channels: int = 1, width: int = 32) -> None:
        check_sizes(self, classes, channels=channels, width=width)
        layers: list[nn.Module] = []
        plan = [(channels, width, 1), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]
        for inputs, outputs, stride in plan:
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class MLP(Recorded, nn.Sequential):
    """Flatten, two hidden layers with ReLU, classifier (the field's MNIST network at width 100).

    Raises:
        ConfigError: sizes that no network can have.
    """

    def __init__(self, classes: int, input_shape: Sequence[int], width: int = 100) -> None:
        check_sizes(self, classes, width=width)
        super().__init__(
            nn.Flatten(),
            nn.Linear(math.prod(checked_shape(input_shape)), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )
