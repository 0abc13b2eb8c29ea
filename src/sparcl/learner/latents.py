"""What a frozen front answers to the samples of a task: computed once each, kept in few bytes, trained on from there.

Legend: N samples, F numbers of a latent, C its channels.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparcl.checkpoint import tree
from sparcl.errors import ConfigError, DataError, DataWarning
from sparcl.learner.frozen import Frozen
from sparcl.methods.method import Method
from sparcl.methods.storage import LARGEST_HALF
from sparcl.nn.convert import ordinary_output
from sparcl.nn.front import ALLOWED, cut
from sparcl.streams.augment import Transform, label_of
from sparcl.streams.task import Samples, Task

LATENTS = "latents"
"""Of a checkpoint's settings, where there are any."""

KINDS = ("float32", "float16", "int8")
BATCH = 64
"""Samples that pass the front at a time: the same on resume, and so the same bits."""

LEVELS = 127
SCALE_BYTES = 4
POSITIONS = 16
"""Numbers of a channel that are worth a scale of its own."""


@dataclass(frozen=True)
class OfLatents(Transform):
    """From latents as they are kept to float32 [N, ...]: no augmentation, no normalisation.

    Attributes:
        kind: one of `KINDS`. int8: a row is F whole numbers, then the bytes of a float32 scale for each channel, or of
            one for all where a channel has fewer than `POSITIONS` numbers.
        shape: of one latent, (C, ...).
    """

    kind: str = "float32"
    shape: tuple[int, ...] = ()

    def train(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return self.test(inputs)

    def test(self, inputs: Tensor) -> Tensor:
        if self.kind != "int8":
            return inputs.to(torch.float32, copy=True)  # a first layer may work in place
        scales = self._channels * SCALE_BYTES
        whole = inputs[:, :-scales].reshape(len(inputs), self._channels, -1)
        scale = inputs[:, -scales:].contiguous().view(torch.float32)
        return (whole * scale.unsqueeze(2)).view(len(inputs), *self.shape)

    def kept(self, latents: Tensor) -> Tensor:
        """Float32 [N, C, ...] as they are kept.

        Raises:
            DataError: they are NaN or infinite, or too large for half precision.
        """
        largest = float(latents.abs().max())
        most = LARGEST_HALF if self.kind == "float16" else torch.finfo(torch.float32).max
        if not largest <= most:
            raise DataError(
                f"the frozen part answers with numbers up to {largest:.6g}, and latents {self.kind} hold {most:.6g} at"
                " most: normalise the inputs" + (", or use float32 or int8" if self.kind == "float16" else "")
            )
        if self.kind != "int8":
            return latents.to(getattr(torch, self.kind)).contiguous()
        flat = latents.reshape(len(latents), self._channels, -1)
        scale = flat.abs().amax(dim=2, keepdim=True) / LEVELS
        whole = (flat / torch.where(scale > 0, scale, 1.0)).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        beside = scale.squeeze(2).contiguous().view(torch.int8)
        return torch.cat([whole.flatten(1), beside], dim=1)

    @property
    def _channels(self) -> int:
        """Parts of a latent that have a scale of their own."""
        return self.shape[0] if math.prod(self.shape[1:]) >= POSITIONS else 1


class Latents:
    """The front of a model, and the rest that trains.

    Args:
        model: as it is defined, before it is converted.
        frozen: what of it is frozen.
        kind: one of `KINDS`.
        method: its buffer keeps the latents as they are.

    Raises:
        ConfigError: an unknown kind, nothing is frozen, the frozen part is not at the front (`nn/front.py`), or the
            buffer has a storage of its own.
    """

    def __init__(self, model: nn.Module, frozen: Frozen, kind: str, method: Method) -> None:
        if kind not in KINDS:
            raise ConfigError(f"unknown latents {kind!r:.40}; allowed: {', '.join(KINDS)}")
        modules = frozen.modules()
        if not modules:
            raise ConfigError("latents are what a frozen part answers, and nothing is frozen: name it with freeze")
        if method.buffer is not None and method.buffer.storage.name != "raw":
            raise ConfigError(f"the buffer keeps latents {kind}: leave buffer storage {method.buffer.storage.name} out")
        self.kind = kind
        self.front, self.rest = cut(model, modules)
        self._told = False
        self._known: str | None = None

    def check(self) -> None:
        """Raise ConfigError if something of the front was unfrozen: it would not train."""
        if moved := [name for name, p in self.front.named_parameters() if p.requires_grad]:
            raise ConfigError(
                f"{moved[0]} was unfrozen, and what it answers is computed once: it would never train; make a new"
                " Learner of the model as it is now"
            )

    def check_same(self) -> None:
        """Raise ConfigError if the front's weights are others than those that gave the first latents."""
        now = self._weights()
        if self._known not in (None, now):
            raise ConfigError(
                "the frozen part has other weights than the latents so far were computed with: put the old ones back,"
                " or make a new Learner of the model as it is now"
            )
        self._known = now

    def remember(self) -> None:
        """A state was loaded: its front is the one that gave the latents in it."""
        self._known = self._weights()

    def _weights(self) -> str:
        """SHA-256 over the front's parameters and statistics."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.front.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tree.buffer(tensor.detach().cpu().contiguous()))
        return digest.hexdigest()

    def convert(self) -> None:
        """The model runs native now: its layers are what they are in there, its result an ordinary tensor."""
        self.rest.register_forward_hook(ordinary_output)

    @torch.no_grad()
    def through(self, inputs: Tensor) -> Tensor:
        """What the front, evaluating, answers to normalised inputs [N, ...]: float32 [N, C, ...]."""
        modes = [(module, module.training) for module in self.front.modules()]
        self.front.eval()
        try:
            latents: Tensor = self.front(inputs)
        finally:
            for module, training in modes:
                module.training = training
        return latents.contiguous()

    def of(self, task: Task, device: torch.device, tell: Callable[[int], None] | None = None) -> Task:
        """The task with latents, as they are kept, in the place of its training samples; nothing is augmented.

        `tell` is told now and then for how many samples they are done.

        Raises:
            DataError: the front answers with what cannot be kept.
            ConfigError: something of it was unfrozen, or the user's own augmentation would have no effect.
        """
        self.check()
        if (augment := getattr(task.transform, "augment", None)) is not None:
            raise ConfigError(
                f"augmentation {label_of(augment)} would have no effect: latents are computed once for"
                " each sample; leave one of the two out"
            )
        self._tell(task.transform)
        kept: Tensor | None = None
        transform = OfLatents(kind=self.kind)
        for start in range(0, len(task.train), BATCH):
            inputs = task.transform.test(task.train.inputs[start : start + BATCH].to(device))
            alone = self.through(inputs[:1].clone()) if start == 0 and len(inputs) > 1 else None
            latents = self.through(inputs)
            if alone is not None:
                self._check_alone(latents[:1], alone)
            transform = OfLatents(kind=self.kind, shape=tuple(latents.shape[1:]))
            part = transform.kept(latents)
            if kept is None:
                kept = part.new_empty(len(task.train), *part.shape[1:])
            kept[start : start + BATCH] = part
            if tell is not None:
                tell(min(start + BATCH, len(task.train)))
        assert kept is not None
        return replace(task, train=Samples(kept, task.train.labels), transform=transform)

    def _check_alone(self, latents: Tensor, alone: Tensor) -> None:
        """Raise ConfigError if the first sample of a batch is answered otherwise alone (NaN is refused elsewhere)."""
        near = 1e-3 * float(latents.abs().max().nan_to_num(posinf=0.0))
        if latents.shape != alone.shape or not torch.allclose(latents, alone, rtol=1e-3, atol=near, equal_nan=True):
            raise ConfigError(f"{ALLOWED}: what the frozen part answers to a sample depends on its batch")

    def like(self, task: Task, device: torch.device) -> Task:
        """The task as `of` makes it, of its first sample alone: what is kept has its shape."""
        few = replace(task, train=Samples(task.train.inputs[:1], task.train.labels[:1]))
        told, self._told = self._told, True
        try:
            return self.of(few, device)
        finally:
            self._told = told

    def _tell(self, transform: Transform) -> None:
        """Say once that a stream's augmentation is left out."""
        if not self._told and (getattr(transform, "crop_padding", False) or getattr(transform, "flip", False)):
            text = "images are not cropped or flipped: the frozen part is computed once for each, as it is in the test"
            warnings.warn(text, DataWarning, stacklevel=2)
        self._told = True


class Answering:
    """A method that was trained on latents, answering to inputs: what evaluation and prediction need of it."""

    def __init__(self, method: Method, latents: Latents | None) -> None:
        self.method, self.latents = method, latents
        self.scenarios = method.scenarios

    def predict(self, inputs: Tensor, task: Task) -> Tensor:
        """Logits [N, C] for normalised inputs."""
        if self.latents is None:
            return self.method.predict(inputs, task)
        latents = self.latents.through(inputs)
        transform = OfLatents(kind=self.latents.kind, shape=tuple(latents.shape[1:]))
        return self.method.predict(latents, replace(task, transform=transform))
