"""One experiment, complete: a point on the four axes, its settings, and where they come from.

Frozen dataclasses, validated when they are made; read from and written to TOML. What is left out is filled in with the
published setting of the stream and method (`resolve`), and `config.toml` of a run holds the filled-in form, so that it
runs again to the same result.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sparcl import methods, named
from sparcl.errors import LARGEST, ConfigError, unknown
from sparcl.learner.budget import check_pace, check_seconds
from sparcl.learner.latents import KINDS
from sparcl.learner.refusals import MOST_SEED
from sparcl.learner.schedule import CONSTANT, check_clip, check_warmup, parse
from sparcl.methods.buffer import parse_bytes
from sparcl.methods.method import SCENARIOS
from sparcl.methods.settings import published
from sparcl.nn import ACTIVATIONS, AUTO, DEFAULT_WIDTH, MODELS
from sparcl.nn.auto import BACKENDS
from sparcl.run import combination, optimizers
from sparcl.run.protocols import OF_OWN, PROTOCOLS
from sparcl.run.toml import check_type, toml_value, tupled
from sparcl.sparsity import SPARSIFIERS, find
from sparcl.sparsity.collected import RANKINGS
from sparcl.sparsity.patterns import BLOCK, DISTRIBUTIONS, PATTERNS
from sparcl.sparsity.static import DEFAULT_SPARSITY, FIRST_MASKS
from sparcl.streams import STREAMS
from sparcl.streams.augment import augmentations

DEVICES = ("auto", "cpu", "cuda")
MOST = 2**31 - 1
"""Of whatever is counted: what PyTorch takes as a size anywhere."""

MOST_WIDTH = 2**16
MOST_THREADS = 1024
"""Those of the native engine."""


@dataclass(frozen=True)
class Experiment:
    """Every setting of a run; None means the published or derived default, which `resolve` fills in."""

    stream: str
    method: str = "derpp"
    sparsifier: str = "sparcl"
    backend: str = "auto"
    device: str = "auto"
    # what arrives
    data: str | None = None
    classes_per_task: int | tuple[int, ...] | None = None
    """Of every task, or of each: (4, 3, 3)."""
    class_order_seed: int | None = None
    class_order: tuple[str, ...] | None = None
    limit_per_class: int | None = None
    limit_test_per_class: int | None = None
    resize: int | None = None
    augment: tuple[str, ...] | None = None
    lazy: bool | None = None
    """Whether a folder's images are decoded when they are needed; None: what fits is held in memory."""
    # how it is learned
    scenario: str | None = None
    preset: str | None = None
    buffer_size: int | None = None
    buffer_bytes: int | str | None = None
    buffer_policy: str | None = None
    buffer_storage: str | None = None
    single_head: bool = False
    method_options: dict[str, float] = field(default_factory=dict)
    lr: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    momentum: float | None = None
    optimizer_options: dict[str, float] = field(default_factory=dict)
    lr_schedule: str | None = None
    warmup: float | None = None
    clip_grad_norm: float | None = None
    average: float | None = None
    """Share of a task's steps that an average of the weights spans, which answers; None: the weights answer."""
    epochs: int | None = None
    steps: int | None = None
    max_seconds: float | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    """Samples that pass the network at a time; None: all of a batch."""
    drop_last: bool | None = None
    model: str | None = None
    width: int | None = None
    activations: str | None = None
    """How those of resnet18 are kept: float32 (None), or bfloat16."""
    init: str | None = None
    init_sha256: str | None = None
    """Of the file `init`, hex: a run goes on, or runs again, from that one only."""
    freeze: str | None = None
    """Parts of the model that do not learn: names or shell patterns of modules, separated by commas."""
    latents: str | None = None
    """How what a frozen front answers is kept: float32, float16 or int8; None: it is computed anew each time."""
    # what is computed at all
    sparsifier_options: dict[str, float] = field(default_factory=dict)
    sparsity: float | None = None
    pattern: str = "unstructured"
    block_size: int = BLOCK
    distribution: str = "uniform"
    prunable: tuple[str, ...] | None = None
    first_mask: str | None = None
    gradient_sparsity: float | None = None
    sample_removal: float | None = None
    ddr_score: str | None = None
    importance: str | None = None
    ranking: str | None = None
    # with what
    max_memory: int | str | None = None
    """Of the whole process, its imports counted: bytes, or such as 256MB."""
    fitted: dict[str, float] = field(default_factory=dict)
    """What was expected, in bytes by part, when the settings were chosen to fit `max_memory`: they are not again."""
    seed: int = 0
    threads: int | None = None
    layer_choice: dict[str, str] = field(default_factory=dict)
    """What `auto` measured for each layer when the run began (native or dense): replayed, not measured anew."""
    pace: tuple[tuple[int, ...], ...] = ()
    """What a budget of seconds came to, task by task: replayed, not measured anew (`learner/budget.py`)."""

    def __post_init__(self) -> None:
        for label, value, allowed in (
            ("stream", self.stream, STREAMS),
            ("method", self.method, methods.METHODS),
            ("sparsifier", self.sparsifier, SPARSIFIERS),
            ("backend", self.backend, BACKENDS),
            ("device", self.device, DEVICES),
            ("scenario", self.scenario, (None, *SCENARIOS)),
            ("model", self.model, (None, AUTO, *MODELS)),
            ("activations", self.activations, (None, *ACTIVATIONS)),
            ("pattern", self.pattern, PATTERNS),
            ("sparsity distribution", self.distribution, DISTRIBUTIONS),
            ("first mask", self.first_mask, (None, *FIRST_MASKS)),
            ("importance", self.importance, (None, *IMPORTANCES)),
            ("ranking", self.ranking, (None, *RANKINGS)),
            ("latents", self.latents, (None, *KINDS)),
        ):
            if value not in allowed and not (label in OF_YOUR_OWN and named.is_own(value)):
                names = [name for name in allowed if name is not None] + OF_YOUR_OWN.get(label, [])
                raise ConfigError(unknown(label, value, names) + _axis(label, value))
        sizes = self.classes_per_task if isinstance(self.classes_per_task, tuple) else [self.classes_per_task]
        for label, number, least, most in (
            ("epochs", self.epochs, 1, MOST),
            ("steps", self.steps, 1, MOST),
            ("batch size", self.batch_size, 1, MOST),
            ("micro-batch", self.micro_batch, 1, MOST),
            ("buffer size", self.buffer_size, 1, MOST),
            ("width", self.width, 1, MOST_WIDTH),
            ("threads", self.threads, 1, MOST_THREADS),
            ("limit per class", self.limit_per_class, 1, MOST),
            ("limit test per class", self.limit_test_per_class, 1, MOST),
            *(("classes per task", k, 1, MOST) for k in sizes),
            ("resize", self.resize, 1, MOST),
            ("seed", self.seed, 0, MOST_SEED),
        ):
            if number is not None:
                check_range(label, number, least, most)
        for label, path in (("data", self.data), ("init", self.init)):
            if path is not None and re.search("[\0\ud800-\udfff]", path):
                raise ConfigError(f"{label} '{path}' is not allowed; use one that is text in UTF-8 (LC_ALL=C.UTF-8)")
        if self.init_sha256 is not None and self.init is None:
            raise ConfigError("init_sha256 goes with init, the file that it is of")
        if self.max_seconds is not None:
            check_seconds("max seconds", self.max_seconds)
        check_pace(self.pace)
        if self.max_memory is not None:
            parse_bytes(self.max_memory, "max memory")
        if self.lr is not None and not 0 < self.lr <= LARGEST:
            raise ConfigError(
                f"learning rate {self.lr:.6g} is not allowed; use a number above 0, at most {LARGEST:.2g}"
            )
        if self.weight_decay is not None and not 0 <= self.weight_decay <= LARGEST:
            raise ConfigError(
                f"weight decay {self.weight_decay:.6g} is not allowed; use 0 or more, at most {LARGEST:.2g}"
            )
        for what in ("method", "sparsifier", "optimizer"):
            for option, setting in getattr(self, f"{what}_options").items():
                if not abs(setting) <= LARGEST:  # NaN, infinity, and what float32 does not hold
                    raise ConfigError(f"{what} option {option} is not a finite number of at most {LARGEST:.2g}")
        self._check_steps()
        for name in ("prunable", "class_order", "augment"):  # a file would hold it as if it were not given
            if getattr(self, name) == () and not (name == "prunable" and self.sparsifier == "dense"):
                raise ConfigError(f"{name.replace('_', ' ')} is empty: name one or more, or leave it out")
        combination.check(self)

    def _check_steps(self) -> None:
        """Refuse what the optimizer's steps cannot follow, and an augmentation that is none."""
        if self.lr_schedule is not None and not named.is_own(self.lr_schedule):
            parse(self.lr_schedule)
        for label, own in (("lr-schedule", self.lr_schedule), ("stream", self.stream), ("model", self.model)):
            if own is not None and named.is_own(own):
                named.check_form(label, own)
        check_warmup(self.warmup or 0.0)
        check_clip(self.clip_grad_norm)
        optimizers.check(self.optimizer, self.momentum, self.optimizer_options)
        if self.augment is not None:
            augmentations(self.augment)  # names alone: what is the user's own is imported where it is used

    def resolve(self) -> Experiment:
        """The experiment with every default filled in.

        Raises:
            ConfigError: an unknown preset.
        """
        protocol = PROTOCOLS.get(self.stream, OF_OWN)
        method = methods.find(self.method)
        of_size = methods.has_buffer(method) and self.buffer_bytes is None
        buffer_size = (self.buffer_size or 200) if of_size else self.buffer_size
        settings = published(self.stream, self.method, buffer_size, self.preset)
        options = {k: v for k, v in settings.items() if k not in ("lr", "weight_decay", "source")}
        model = self.model or protocol.model
        sparsifier, own = find(self.sparsifier), named.is_own(self.sparsifier)
        sparse = self.sparsifier != "dense" and (not own or named.takes(sparsifier, "sparsity"))
        sparcl = self.sparsifier == "sparcl"
        has_mask = self.sparsifier != "snip" and not own
        usual_mask = "magnitude" if self.init else "random"  # the largest of given weights are what they know
        lr, weight_decay = self._rates(settings)
        ddr = combination.removal(self)
        by_epochs = self.steps is None and self.max_seconds is None
        return dataclasses.replace(
            self,
            scenario=self.scenario or method.scenarios[0],
            buffer_size=buffer_size,
            method_options={**options, **self.method_options},
            augment=None if self.augment is None else tuple("+".join(self.augment).split("+")),
            lr=lr,
            weight_decay=weight_decay,
            optimizer=None if self.optimizer == optimizers.USUAL else self.optimizer,
            momentum=self.momentum if named.is_own(self.optimizer) else self.momentum or None,
            lr_schedule=None if self.lr_schedule == CONSTANT else self.lr_schedule,
            warmup=self.warmup or None,
            epochs=(self.epochs or protocol.epochs) if by_epochs else None,
            model=model,
            width=self.width or DEFAULT_WIDTH.get(model),
            sparsity=_default(self.sparsity, DEFAULT_SPARSITY) if sparse else self.sparsity if own else None,
            drop_last=sparsifier.drops_last if self.drop_last is None else self.drop_last,
            prunable=self.prunable if sparse or own else None,
            first_mask=(self.first_mask or usual_mask) if sparse and has_mask else self.first_mask,
            gradient_sparsity=_default(self.gradient_sparsity, 0.2) if sparcl else None,
            sample_removal=(ddr.share if by_epochs or not ddr.by_epochs else 0.0) if sparcl else None,
            ddr_score=ddr.score if sparcl else None,
            importance=self.importance or "cwi" if sparcl else None,
            ranking=self.ranking or "step" if sparcl else None,
        )

    def _rates(self, published: dict[str, Any]) -> tuple[float | None, float | None]:
        """Learning rate and weight decay: given, published for SGD, or the optimizer's; one's own is asked itself."""
        if named.is_own(self.optimizer):
            return self.lr, self.weight_decay
        kind = optimizers.OPTIMIZERS[self.optimizer or optimizers.USUAL]
        lr = published["lr"] if kind.lr is None else kind.lr
        decay = published.get("weight_decay", 0.0) if kind.weight_decay is None else kind.weight_decay
        return lr if self.lr is None else self.lr, _default(self.weight_decay, decay)

    @property
    def name(self) -> str:
        """A short name, for the run directory: stream, method, sparsifier, seed."""
        parts = [self.stream, self.method, self.sparsifier]
        if self.sparsifier != "dense" and not (named.is_own(self.sparsifier) and self.sparsity is None):
            parts.append(f"{DEFAULT_SPARSITY if self.sparsity is None else self.sparsity:g}")
        if self.pattern != "unstructured":
            parts.append(self.pattern)
        return "-".join([*parts, f"seed{self.seed}"]).replace(":", ".")  # a colon is not for every disk

    def to_toml(self, without: Collection[str] = ()) -> str:
        """The experiment as TOML; `None` is left out, and what is named in `without`."""
        lines, tables = [], []
        for key, value in dataclasses.asdict(self).items():
            if value is None or value in ({}, ()) or key in without:
                continue
            if isinstance(value, dict):
                tables += ["", f"[{key}]", *(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items())]
            else:
                lines.append(f"{key} = {toml_value(value)}")
        return "\n".join([*lines, *tables, ""])

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "configuration") -> Experiment:
        """An experiment from plain values; unknown keys and wrong types are refused, with what is allowed."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in fields:
                raise ConfigError(f"{source}: {unknown('setting', key, fields)}")
            check_type(source, key, str(fields[key].type), value)
        if "stream" not in values:
            raise ConfigError(f"{source}: no stream is named; allowed: {', '.join(STREAMS)}")
        values = {k: tupled(v) for k, v in values.items()}
        return cls(**values)


IMPORTANCES = ("cwi", "magnitude", "none")
"""What TDM ranks weights by; none: masks stay as they begin."""

OF_YOUR_OWN = {
    "stream": ["package.module:name"],
    "model": ["package.module:name"],
    "method": ["package.module:Class"],
    "sparsifier": ["package.module:Class"],
}
"""What may be named beside what is in the registries."""


def check_range(label: str, number: int, least: int, most: int) -> None:
    """Refuse a number outside least..most (ConfigError)."""
    if number < least:
        raise ConfigError(f"{label} {number} is not allowed; use {least} or more")
    if number > most:
        raise ConfigError(f"{label} {number} is not allowed; use {most} or less")


def _axis(label: str, value: object) -> str:
    """Where a name of another axis is given, how that one is named."""
    names: dict[str, Any] = {"method": methods.METHODS, "sparsifier": SPARSIFIERS, "model": MODELS}
    if label == "stream" and str(value).endswith(".toml"):
        return f"; a file of settings is named by --config {value}"
    others = [other for other in names if other != label and value in names[other]]
    return "".join(f"; {value} is a {other}: --{other} {value}" for other in others)


def _default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
