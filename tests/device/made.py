"""Learners and files for the tests of the device, and a way to run the program."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from forwards import LeNetLike, Tangled, TorchvisionLike, WideResNetLike
from torch import nn

from sparcl import Learner
from sparcl.methods import DERpp, Method
from sparcl.nn import MLP, ConvNet, ResNet
from sparcl.run.export_device import export_device, pack
from sparcl.sparsity import SET, SparCL, Sparsifier, Static
from sparcl.streams import Stream, Task, Transform, from_arrays
from sparcl.streams.augment import Normalize

SHAPE = (3, 8, 8)
CLASSES = ("cat", 'do"g', "Wörter", "x", "new", "newer")
SANITIZED = bool({"ASAN_OPTIONS", "TSAN_OPTIONS"} & os.environ.keys())
"""Whether the program is built for a sanitizer: it takes more memory, and address space without end."""


def own() -> nn.Module:
    """A user's own sequence: pools, bias, a ReLU apart, groups, dilation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(8, momentum=0.2),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet((2, 1, 1, 1), 3, 4, 8),
    "convnet": lambda: ConvNet(4, 3, 8),
    "mlp": lambda: MLP(4, SHAPE, 20),
    "own": own,
    "torchvision": TorchvisionLike,
    "before": WideResNetLike,
    "functions": LeNetLike,
    "tangled": Tangled,
}


def stream(tasks: int = 3, per_class: int = 24, transform: Transform | None = None) -> Stream:
    """Bytes [3, 8, 8], two classes a task, each around a picture of its own."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.rand(2 * tasks, *SHAPE, generator=generator) * 255
    labels = torch.arange(2 * tasks).repeat(per_class)

    def draw() -> torch.Tensor:
        noise = 60 * torch.randn(len(labels), *SHAPE, generator=generator)
        return (centres[labels] + noise).clamp(0, 255).to(torch.uint8)

    transform = transform or Transform(Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), crop_padding=1, flip=True)
    return from_arrays(draw(), labels, draw(), labels, transform=transform, name="made")


def learner(
    model: str = "convnet",
    sparsifier: Sparsifier | None = None,
    method: Method | None = None,
    backend: str = "reference",
    average: float | None = None,
) -> Learner:
    torch.manual_seed(3)
    made = sparsifier or Static(0.6)
    options = {"lr": 0.05, "epochs": 2, "batch_size": 8, "seed": 4}
    return Learner(MODELS[model](), method or DERpp(12, alpha=0.2), made, backend=backend, average=average, **options)


def export(learner: Learner, path: Path, task: Task) -> Path:
    export_device(learner, path, transform=task.transform, input_shape=SHAPE, classes=CLASSES[:4])
    return path


def packed(task: Task, path: Path, train: bool = True) -> Path:
    samples = task.train if train else task.test
    pack(samples, CLASSES, path)
    return path


def memory() -> str | None:
    """A folder of memory, where files that are synced cost nothing; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(program: Path, *arguments: object, isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPARCL_ISA": isa}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def stopped_inside(program: Path, *arguments: object) -> str:
    """`learn`, stopped by Ctrl-C once it has made a step; what it said then."""
    command = [str(program), "learn", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch") for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    return said


SPARSIFIERS = {
    "dense": Sparsifier,
    "static": lambda: Static(0.6),
    "blocks": lambda: SparCL(0.5, pattern="block", block_size=4),
}

RIVALS = {"set": lambda: SET(0.6)}
