"""Networks that are not sparcl's: what of each runs native, what stays PyTorch, and what a training step gains.

    pip install timm --no-deps
    python benchmarks/own_models.py --sparsity 0.90 --learn

A training step (forward, backward, SGD) at batch 32 on one thread, in milliseconds of the processor: dense PyTorch,
NCHW or channels_last, whichever is faster, against masks of that sparsity with `auto`'s choice. The sides take turns;
medians. `--learn` has a Learner learn, save, load and go on with each first. Without timm its networks are left out.

timm imports torchvision and huggingface_hub, for data sets and downloads; where they are missing, empty ones stand in.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparcl
from sparcl.nn import auto, convert, prunable_names
from sparcl.nn.layers import is_weighted
from sparcl.sparsity import SparCL, Static

CLASSES = 10
Make = Callable[[], nn.Module]


class SensorNet(nn.Sequential):
    """A 1-D CNN on series of 9 channels and 128 steps."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 128, 256)) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip((9, *widths), widths, strict=False):
            layers += [nn.Conv1d(inputs, outputs, 5, padding=2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
            layers += [nn.MaxPool1d(2)]
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


class GRUNet(nn.Module):
    """A GRU between two linear layers, on series [N, 128, 9] of steps."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed, self.gru = nn.Linear(9, width), nn.GRU(width, width, batch_first=True)
        self.hidden, self.classifier = nn.Linear(width, 2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(F.relu(self.embed(x)))
        logits: Tensor = self.classifier(F.relu(self.hidden(states[:, -1])))
        return logits


def mlp() -> nn.Module:
    """Three hidden layers of 512 with BatchNorm."""
    layers: list[nn.Module] = []
    for inputs in (784, 512, 512):
        layers += [nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, CLASSES))


def networks() -> dict[str, tuple[Make, tuple[int, ...]]]:
    """By name: what makes a network, and the shape of one sample."""
    own: dict[str, tuple[Make, tuple[int, ...]]] = {
        "1-D CNN": (SensorNet, (9, 128)),
        "GRU": (GRUNet, (128, 9)),
        "MLP": (mlp, (784,)),
    }
    timm = import_timm()
    if timm is None:
        print("timm is missing: its networks are left out")
        return own
    image = (3, 64, 64)
    theirs: dict[str, tuple[Make, tuple[int, ...]]] = {}
    for name, options in {
        "resnet18": {},
        "mobilenetv3_small_100": {},
        "efficientnet_b0": {},
        "vit_tiny_patch16_224": {"img_size": 64, "patch_size": 8},
    }.items():
        made: dict[str, Any] = {"num_classes": CLASSES, **options}
        theirs[f"timm {name}"] = (lambda name=name, made=made: timm.create_model(name, **made), image)  # type: ignore[misc]
    return {**theirs, **own}


def import_timm() -> Any:
    """The package, with stand-ins for what it imports and these networks do not need; None where it is missing."""
    if importlib.util.find_spec("timm") is None:
        return None
    sys.meta_path.append(StandIns())
    import timm

    return timm


class Named(type):
    """A class that has every attribute: its name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(types.ModuleType):
    """A module that has every class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Named(name, (), {})
        setattr(self, name, made)
        return made


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision, huggingface_hub and yaml where nobody else does."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        if fullname.partition(".")[0] in ("torchvision", "huggingface_hub", "yaml"):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


def step_of(model: nn.Module, x: Tensor, labels: Tensor, sparsifier: Static | None = None) -> Callable[[], object]:
    """A training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    if sparsifier is not None:
        sparsifier.attach(model, optimizer)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds(steps: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median processor time of each step, in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            step()
            start = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def left_to_pytorch(model: nn.Module) -> str:
    """Kinds of layers with weights that no kernel of sparcl's computes."""
    ours = ("sparcl.",)
    names = Counter(
        type(m).__name__
        for m in model.modules()
        if next(m.parameters(recurse=False), None) is not None
        and not type(m).__bases__[0].__module__.startswith(ours)
        and not type(m).__module__.startswith(ours)
    )
    return ", ".join(f"{count} {name}" for name, count in names.items()) or "none"


def measure(name: str, make: Make, shape: tuple[int, ...], options: argparse.Namespace) -> None:
    """Print a line of the table."""
    torch.manual_seed(0)
    x, labels = torch.randn(options.batch, *shape), torch.arange(options.batch) % CLASSES
    steps = {"dense": step_of(make(), x, labels)}
    if len(shape) == 3:
        moved: Any = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps["channels_last"] = step_of(moved, x.contiguous(memory_format=torch.channels_last), labels)
    model = make()
    names, layers = prunable_names(model), sum(map(is_weighted, model.modules()))
    weights = sum(p.numel() for p in model.parameters())
    pruned = sum(model.get_submodule(n).weight.numel() for n in names)  # type: ignore[operator, union-attr]
    sparsifier = Static(options.sparsity)
    choice = auto.measure(model, None, sparsifier.densities, 1, options.batch, shape)
    convert.to_native(model, choice=choice)
    steps["native"] = step_of(model, x, labels, sparsifier)
    native = len(convert.backends(model, names)["native"])
    took = seconds(steps, options.turns)
    dense = min(taken for side, taken in took.items() if side != "native")
    print(
        f"| {name} | {weights / 1e6:.2f} M | {pruned / weights:.0%} | {native} of {len(names)} of {layers}"
        f" | {left_to_pytorch(model)} | {1e3 * dense:.1f} | {1e3 * took['native']:.1f}"
        f" | {dense / took['native']:.1f}× |",
        flush=True,
    )


def learn(make: Make, shape: tuple[int, ...]) -> None:
    """A Learner learns a task, is saved, loaded, and learns another."""
    x, labels = torch.randn(32, *shape), torch.arange(32) % 4
    stream = sparcl.streams.from_arrays(x, labels, x, labels, classes_per_task=2)
    learner = sparcl.Learner(
        make(), sparcl.methods.DERpp(8), SparCL(0.90), epochs=1, batch_size=8, lr=0.01, input_shape=shape
    )
    learner.learn(stream[0])
    with tempfile.TemporaryDirectory() as folder:
        learner.save(f"{folder}/saved")
        again = sparcl.Learner.load(f"{folder}/saved", make())
    again.learn(stream[1])
    again.dense_model()(x)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.90)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--learn", action="store_true", help="have a Learner learn, save, load and go on first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| | weights | prunable | native of prunable of layers | PyTorch's | dense ms | native ms | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (make, shape) in networks().items():
        if options.learn:
            learn(make, shape)
        measure(name, make, shape, options)


if __name__ == "__main__":
    main()
