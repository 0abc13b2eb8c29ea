"""Networks with a `forward` of their own, as people write them, for images [3, 8, 8] and four classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """As in torchvision: the sum is written into the branch's result, ReLU is one module for all."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        result: Tensor = self.relu(out)
        return result


class Idle(nn.Module):
    """Layers that `forward` never calls, as where an auxiliary answer was left out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.aside = nn.Sequential(nn.Conv2d(8, 8, 1, 2), nn.BatchNorm2d(8))
        self.body, self.fc = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class TorchvisionLike(nn.Module):
    """Stem with a maximum, stages, a head behind `torch.flatten`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = nn.Sequential(Block(8, 8), Block(8, 8)), nn.Sequential(Block(8, 12, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(12, 4)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class Before(nn.Module):
    """A block with norm and ReLU before each convolution: no norm can add its sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        beside = x if self.shortcut is None else self.shortcut(y)
        return torch.add(self.conv2(F.relu(self.bn2(self.conv1(y)))), beside)


class WideResNetLike(nn.Module):
    """Blocks in a list, a pool as wide as the image, a view by the batch's size, and an argument that is not given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.ModuleList([Before(8, 8), Before(8, 12), Before(12, 12)])
        self.bn, self.classifier = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor, returnt: str = "out") -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out = F.relu(self.bn(x))
        features = F.avg_pool2d(out, out.shape[2]).view(out.size(0), -1)
        logits: Tensor = self.classifier(features)
        return logits if returnt == "out" else features


class LeNetLike(nn.Module):
    """Functions for all that has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5, padding=2), nn.Conv2d(6, 10, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(40, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), (2, 2), stride=2)
        logits: Tensor = self.fc2(self.fc1(x.view(-1, 40)).relu())
        return logits


class Tangled(nn.Module):
    """What is read more than once, before and behind a ReLU, sums of the input, of twins and of two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False) for inputs, outputs in ((3, 3), (3, 8), (3, 8), (8, 8))
        )
        self.norm0, self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(c) for c in (3, 8, 8, 8))
        self.same, self.fc = nn.Identity(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv0(x)
        y = self.norm0(x)
        y = F.relu(self.same(y)) + y
        y = self.norm1(self.conv1(y)) + self.norm2(self.conv2(y))
        y = self.norm3(self.conv3(y + y))
        z = F.relu(y).mean((2, 3)) + y.mean((2, 3))
        logits: Tensor = self.fc(z)
        return logits
