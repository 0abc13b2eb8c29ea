"""Augmentation and normalisation, a whole batch at a time.

Axes: N batch, C channels, H height, W width. Every random number comes from a CPU generator, so that each
device and backend sees the same pictures. One gather makes crop and flip together: 0.2 ms for 32 CIFAR images
on one core (`python benchmarks/augment.py`); four broadcast index tensors took 0.9 ms, a window per image and
`where` for the flip 0.3 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from sparcl import named
from sparcl.errors import ConfigError, DataError
from sparcl.whole import is_whole

# Per-channel statistics of the training images, as the field uses them (Buzzega et al. 2020, official code).
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
TINY_IMAGENET_MEAN, TINY_IMAGENET_STD = (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""An augmentation of the user's own: a batch as stored, [N, ...], and the generator to draw from -> such a batch."""

How = str | Augment | Sequence[str | Augment]
"""Augmentations by name (`AUGMENTATIONS`, joined by +, or `package.module:name`) or the user's own, or several."""

AUGMENTATIONS = ("none", "crop", "flip")
CROP_PADDING = 4
"""Of a crop that is asked for by name, where the stream has none of its own."""
MOST_PADDING = 4096


class Normalize:
    """`(x - mean) / std` per channel, after uint8 has become [0, 1]; floating inputs keep their scale.

    Args:
        mean: one value for all channels, or one for each; an array or a tensor will do.
        std: as `mean`; positive.

    Raises:
        ConfigError: lengths differ, a value is no finite number, or a standard deviation is not positive.
    """

    def __init__(self, mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> None:
        try:
            values = [np.asarray(v, dtype=np.float64).reshape(-1).tolist() for v in (mean, std)]
        except (TypeError, ValueError):
            values = [[], []]
        self.mean, self.std = map(tuple, values)
        finite = all(map(math.isfinite, [*self.mean, *self.std]))
        if len(self.mean) != len(self.std) or not self.mean or not finite or min(self.std) <= 0:
            raise ConfigError(
                f"mean and std need one finite value per channel, std above 0; got {mean!r:.60} and {std!r:.60}"
            )
        self._factors: dict[tuple[torch.device, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """uint8 or float [N, C, ...] -> float32 of the same shape and memory layout.

        Raises:
            ConfigError: there are statistics of another number of channels.
        """
        scale, shift = self._scale_and_shift(inputs.device, inputs.dtype == torch.uint8)
        if scale.numel() > 1:  # statistics per channel: axis 1
            if inputs.dim() < 2 or inputs.shape[1] != len(self.mean):
                raise ConfigError(
                    f"there are means of {len(self.mean)} channels but samples of shape {list(inputs.shape[1:])}:"
                    f" one mean for all is needed, or one for each{channels_hint(inputs)}"
                )
            shape = (-1,) + (1,) * (inputs.dim() - 2)
            scale, shift = scale.view(shape), shift.view(shape)
        return inputs.to(torch.float32, copy=True).mul_(scale).sub_(shift)

    def _scale_and_shift(self, device: torch.device, is_uint8: bool) -> tuple[Tensor, Tensor]:
        key = (device, is_uint8)
        if key not in self._factors:
            std = torch.tensor(self.std, dtype=torch.float64)
            scale = 1 / (std * 255) if is_uint8 else 1 / std
            shift = torch.tensor(self.mean, dtype=torch.float64) / std
            self._factors[key] = (scale.float().to(device), shift.float().to(device))
        return self._factors[key]


def channels_hint(inputs: Tensor) -> str:
    """What to add to a refusal of inputs [N, ...] that look like images with the channels last; else nothing."""
    if inputs.dim() != 4 or inputs.shape[3] not in (1, 2, 3, 4) or inputs.shape[1] <= 4:
        return ""
    return " (images are [N, C, H, W]: if yours have the channels last, give .permute(0, 3, 1, 2) of them)"


@dataclass(frozen=True)
class Transform:
    """What happens to a batch between storage and network: random crop and flip, what is the user's own, normalisation.

    Attributes:
        normalize: applied in training and in test.
        crop_padding: zeros put around the *raw* image before a random crop of the original size; 0: no crop.
        flip: mirror each training image left to right with probability one half.
        augment: of training batches, after crop and flip: (batch as stored, generator) -> batch of that shape and
            dtype. What it draws must come from the generator: then the same seed gives the same bits.
    """

    normalize: Normalize = field(default_factory=Normalize)
    crop_padding: int = 0
    flip: bool = False
    augment: Augment | None = None

    def __post_init__(self) -> None:
        padding, flip = self.crop_padding, self.flip
        if not is_whole(padding, 0, MOST_PADDING):
            raise ConfigError(f"crop padding {padding!r:.40} is not allowed; use 0 (no crop) to {MOST_PADDING}")
        if not isinstance(flip, bool | np.bool_):
            raise ConfigError(f"flip {flip!r:.40} is not allowed; use True or False")
        for label, function in (("normalize", self.normalize), ("augment", self.augment or abs)):
            if not callable(function) or isinstance(function, type):
                raise ConfigError(f"{label} {function!r:.40} is not allowed; use a function of a batch")
        object.__setattr__(self, "crop_padding", int(padding))
        object.__setattr__(self, "flip", bool(flip))

    def augmented(self, how: How) -> Self:
        """This normalisation with the augmentation `how` in place of its own: "none", "crop", "flip", "crop+flip", ...

        Raises:
            ConfigError: an unknown name, one that is there twice, or `none` beside others.
        """
        names, own = augmentations(how)
        padding = (self.crop_padding or CROP_PADDING) if "crop" in names else 0
        found = named.find("augmentation", own) if isinstance(own, str) else own
        return replace(self, crop_padding=padding, flip="flip" in names, augment=found)

    def settings(self) -> dict[str, Any] | None:
        """As JSON values, for `of`; of the user's own augmentation its name. None for a transform of another class."""
        if not is_ours(self):
            return None
        statistics = {"mean": list(self.normalize.mean), "std": list(self.normalize.std)}
        own = {} if self.augment is None else {"augment": label_of(self.augment)}
        return {**statistics, "crop_padding": self.crop_padding, "flip": self.flip, **own}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From `settings()`; an augmentation of the user's own is missing, and asked for where it is needed.

        Raises:
            ConfigError: it is not well formed.
        """
        try:
            mean, std = ([float(v) for v in settings[key]] for key in ("mean", "std"))
            padding, flip, own = settings["crop_padding"], settings["flip"], settings.get("augment")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the transform is not well formed: {error!r:.80}") from None
        finite = all(map(math.isfinite, [*mean, *std]))
        if not finite or type(padding) is not int or not 0 <= padding <= MOST_PADDING or type(flip) is not bool:
            raise ConfigError("the transform is not well formed: finite statistics, a padding and a flip are needed")
        if not isinstance(own, str | None):
            raise ConfigError("the transform is not well formed: an augmentation is known by its name")
        return cls(Normalize(mean, std), padding, flip, None if own is None else Missing(own))

    def train(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise: uint8 or float [N, C, H, W] -> float32 ([N, ...] without crop and flip).

        Args:
            inputs: the samples as stored, on any device.
            generator: a CPU generator, the only source of randomness.

        Raises:
            ConfigError: the samples are no images though they should be cropped or flipped, or have other channels than
                the normalisation; or the user's own augmentation fails, or gives another shape or dtype.
        """
        if self.crop_padding or self.flip:
            inputs = random_crop_flip(inputs, self.crop_padding, self.flip, generator)
        if self.augment is not None:
            inputs = _by_own(self.augment, inputs, generator)
        return self.normalize(inputs)

    def test(self, inputs: Tensor) -> Tensor:
        """Normalise only: uint8 or float [N, ...] -> float32."""
        return self.normalize(inputs)


def is_ours(transform: object) -> bool:
    """Whether it normalises as `Normalize` does, which tells pixels of uint8 from floating ones; one's own may not."""
    return type(transform) is Transform and type(transform.normalize) is Normalize


@dataclass(frozen=True)
class Missing:
    """An augmentation of the user's own that a checkpoint knows by name alone."""

    __name__: str

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Refuse to go on without it."""
        del batch, generator
        raise ConfigError(
            f"the loaded state has the augmentation {self.__name__!r:.60} of your own: give it, observe(x, y,"
            " transform=)"
        )


def check_transform(transform: object, of: str, error: type[ConfigError | DataError] = ConfigError) -> None:
    """Raise `error` unless it transforms batches: a Transform, or what has its `train` and `test`."""
    has = all(callable(getattr(transform, name, None)) for name in ("train", "test"))
    if isinstance(transform, type) or not has:
        kind = f"the class {transform.__name__}" if isinstance(transform, type) else f"a {type(transform).__name__}"
        raise error(f"{of} has {kind} for a transform: use Transform()")


def label_of(augment: Augment) -> str:
    """What an augmentation of the user's own is called."""
    return str(getattr(augment, "__name__", type(augment).__name__))


def augmentations(how: How) -> tuple[tuple[str, ...], Augment | str | None]:
    """The named ones, in the order of `AUGMENTATIONS`, and the user's own or its name; nothing is imported.

    Raises:
        ConfigError: an unknown name, one that is there twice, `none` beside others, or two of the user's own.
    """
    asked = [how] if isinstance(how, str) or callable(how) else list(how) if isinstance(how, Sequence) else [repr(how)]
    words = [word for one in asked for word in (one.split("+") if isinstance(one, str) else [one])]
    own = [word for word in words if not isinstance(word, str) or named.is_own(word)]
    names = [word for word in words if isinstance(word, str) and not named.is_own(word)]
    allowed = f"allowed: {', '.join(AUGMENTATIONS)}, several joined by +, and one package.module:name"
    for name in names:
        if name not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {name!r:.80}; {allowed}")
    if not words or len(set(names)) < len(names) or len(own) > 1 or ("none" in names and len(words) > 1):
        raise ConfigError(f"augmentation {'+'.join(map(str, words)):.120} is not allowed; {allowed}, each once")
    for one in own:
        if isinstance(one, str):
            named.check_form("augmentation", one)
        elif not callable(one):
            kind = type(one).__name__
            raise ConfigError(f"the augmentation is a {kind}; a function of a batch and a generator is needed")
    return tuple(name for name in AUGMENTATIONS[1:] if name in names), own[0] if own else None


def _by_own(augment: Augment, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """What the user's function makes of a batch; it may write into what it is given, and the data stays as it is."""
    label = f"augmentation {label_of(augment)}"
    made: object = named.call(label, augment, inputs.clone(), generator)
    if not isinstance(made, Tensor) or (made.shape, made.dtype) != (inputs.shape, inputs.dtype):
        kind = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ConfigError(f"{label} makes {kind} of {inputs.dtype} {list(inputs.shape)}: shape and dtype must stay")
    return made


def random_crop_flip(inputs: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop each image at its own offset from a zero-padded copy, and mirror each with probability one half.

    Args:
        inputs: [N, C, H, W], any dtype and device.
        padding: zeros on each side before the crop, which has the size H × W again.
        flip: whether to mirror at all.
        generator: CPU generator; it is advanced by the same amount on every device.

    Returns:
        [N, C, H, W], dtype and device of `inputs`, contiguous.

    Raises:
        ConfigError: `inputs` have another number of axes.
    """
    if inputs.dim() != 4:
        raise ConfigError(f"crop and flip are for images [C, H, W], not for samples of shape {list(inputs.shape[1:])}")
    n, c, h, w = inputs.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    rows = offsets[0] + torch.arange(h)  # [N, H], in the padded image
    columns = torch.arange(w).expand(n, w)
    if flip:
        mirrored = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool)
        columns = torch.where(mirrored, w - 1 - columns, columns)
    columns = offsets[1] + columns  # [N, W]
    pixels = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]
    index = pixels.to(inputs.device).view(n, 1, h * w).expand(n, c, h * w)
    padded = F.pad(inputs, (padding,) * 4).reshape(n, c, (h + 2 * padding) * (w + 2 * padding))
    return padded.gather(2, index).view(n, c, h, w)
