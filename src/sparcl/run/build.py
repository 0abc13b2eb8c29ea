"""From an experiment's settings to its objects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from sparcl import methods, named, nn, seeds, streams
from sparcl.errors import ConfigError, DataWarning
from sparcl.learner import Learner
from sparcl.learner.schedule import Factor, Rate
from sparcl.learner.telling import Observer
from sparcl.methods.method import Method
from sparcl.methods.respond import evaluating
from sparcl.recorded import made_again
from sparcl.run import optimizers, pretrained
from sparcl.run.combination import OF_BUFFER
from sparcl.run.experiment import Experiment
from sparcl.sparsity import SPARSIFIERS, find
from sparcl.sparsity.ddr import MISCLASSIFIED
from sparcl.sparsity.patterns import make_pattern
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.augment import Transform
from sparcl.streams.files import Progress
from sparcl.streams.task import Stream

SETTINGS = (*OF_BUFFER, "single_head")
"""Arguments of a method that an experiment names itself, not among `method_options`."""


def stream(experiment: Experiment, progress: Progress | None = None) -> Stream:
    """Load the experiment's stream (as it arrives: joint trains on `.merged()` of it)."""
    loaded = streams.load(
        experiment.stream,
        Path(experiment.data) if experiment.data is not None else None,
        classes_per_task=experiment.classes_per_task,
        class_order_seed=experiment.class_order_seed,
        class_order=experiment.class_order,
        limit_per_class=experiment.limit_per_class,
        resize=experiment.resize,
        augment=experiment.augment,
        lazy=experiment.lazy,
        progress=progress,
    )
    return loaded if (most := experiment.limit_test_per_class) is None else loaded.limit_test(most)


def method(experiment: Experiment) -> Method:
    """The experiment's method; an option that it does not have is refused with those it has."""
    kind = methods.find(experiment.method)
    accepted = named.arguments_of(kind)
    own = [name for name in accepted if name not in SETTINGS]
    for name in experiment.method_options:
        if name in SETTINGS:
            raise ConfigError(f"{name} is no option of a method but a setting of its own: --{name.replace('_', '-')}")
        if not named.takes(kind, name):
            allowed = f"allowed: {', '.join(own)}" if own else "it has none"
            raise ConfigError(f"method {experiment.method} has no option {name!r}; {allowed}")
    if experiment.single_head and not named.takes(kind, "single_head"):
        raise ConfigError(f"method {experiment.method} has no single head; leave it out")
    options: dict[str, Any] = dict(experiment.method_options)
    for name in OF_BUFFER:
        if (value := getattr(experiment, name)) is not None:
            if not named.takes(kind, name):
                raise ConfigError(f"method {experiment.method} has a {name.replace('_', ' ')} of its own; leave it out")
            options[name] = value
    if experiment.single_head:
        options["single_head"] = True
    if named.is_own(experiment.method):
        options = named.numbers("method", kind, options)
        made: Method = named.call(f"method {experiment.method}", kind, **options)
        return made
    return kind(**options)


def sparsifier(experiment: Experiment) -> Sparsifier:
    """The experiment's sparsifier; `experiment` is resolved."""
    if experiment.sparsifier == "dense":
        return Sparsifier()
    if named.is_own(experiment.sparsifier):
        return _own_sparsifier(experiment)
    assert experiment.sparsity is not None
    if experiment.sparsifier == "sparcl":
        assert experiment.gradient_sparsity is not None
        assert experiment.sample_removal is not None
        stay: dict[str, Any] = {"p_intra": 0.0, "p_inter": 0.0} if experiment.importance == "none" else {}
        with made_again():  # `effect` has looked at what is set
            return SparCL(
                experiment.sparsity,
                gradients=experiment.gradient_sparsity,
                samples=experiment.sample_removal,
                pattern=experiment.pattern,
                block_size=experiment.block_size,
                distribution=experiment.distribution,
                prunable=experiment.prunable,
                ddr_score=experiment.ddr_score or MISCLASSIFIED,
                ranking=experiment.ranking or "step",
                use_gradients=experiment.importance != "magnitude",
                **stay,
                first_mask=experiment.first_mask or "random",
            )
    given = {} if experiment.first_mask is None else {"first_mask": experiment.first_mask}
    return SPARSIFIERS[experiment.sparsifier](
        experiment.sparsity,
        pattern=make_pattern(experiment.pattern, experiment.block_size),
        distribution=experiment.distribution,
        prunable=experiment.prunable,
        **given,
    )


def _own_sparsifier(experiment: Experiment) -> Sparsifier:
    """One of the user's own: what is set must be an argument of its class."""
    name, kind = experiment.sparsifier, find(experiment.sparsifier)
    by_name = named.takes(kind, "block_size")  # as SparCL; the others take a Pattern
    blocks = experiment.pattern == "block"
    pattern = experiment.pattern if by_name else make_pattern(experiment.pattern, experiment.block_size)
    given: dict[str, Any] = {
        "sparsity": experiment.sparsity,
        "pattern": pattern if blocks else None,
        "block_size": experiment.block_size if blocks and by_name else None,
        "distribution": experiment.distribution if experiment.distribution != "uniform" else None,
        "prunable": experiment.prunable,
        "first_mask": experiment.first_mask,
    }
    for option in experiment.sparsifier_options:
        if option in given:
            raise ConfigError(f"{option} is no option of a sparsifier but a setting: --{option.replace('_', '-')}")
    given |= named.numbers("sparsifier", kind, experiment.sparsifier_options)
    made: Sparsifier = named.make("sparsifier", name, given={k: v for k, v in given.items() if v is not None})
    return made


def device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda is not available here; use cpu or auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check(experiment: Experiment) -> None:
    """Refuse what the parts themselves refuse, before data is read; `experiment` is resolved."""
    check_parts(experiment)
    device(experiment.device)


def check_parts(experiment: Experiment) -> None:
    """`check`, but for the device: a run may be for another machine."""
    method(experiment)
    sparsifier(experiment)
    schedule(experiment)
    optimizers.maker(experiment)
    if experiment.augment is not None:
        Transform().augmented(experiment.augment)
    for what in ("stream", "model"):
        if named.is_own(name := getattr(experiment, what)):
            named.find(what, name)


def schedule(experiment: Experiment) -> str | Factor | None:
    """The experiment's learning-rate schedule: a name, or the user's own function of the share spent."""
    name = experiment.lr_schedule
    if name is None or not named.is_own(name):
        return name
    factor = named.find("lr-schedule", name)
    Rate(own := lambda share: named.call(f"lr-schedule {name}", factor, share))
    return own


def model(experiment: Experiment, stream: Stream) -> torch.nn.Module:
    """The experiment's network; of one of the user's own it is tried whether it answers the stream's samples.

    Raises:
        ConfigError: it cannot be made, or does not answer with a logit for each class.
    """
    assert experiment.model is not None
    kept = experiment.activations or nn.FLOAT32
    made = nn.build(experiment.model, stream.n_classes, stream.input_shape, experiment.width, kept)
    if not named.is_own(experiment.model):
        return made
    label = f"model {experiment.model}"
    if extra := [n for n, m in made.named_modules() if type(m).get_extra_state is not torch.nn.Module.get_extra_state]:
        raise ConfigError(f"{label}: {extra[0] or 'it'} has an extra state, and a run keeps tensors alone")
    task = stream.tasks[0]
    with torch.no_grad(), evaluating(made):
        samples = task.transform.test(task.train.inputs[:2])
        logits: object = named.call(label, made, samples)
    wanted = [len(samples), stream.n_classes]
    if not isinstance(logits, torch.Tensor) or list(logits.shape) != wanted:
        answer = f"shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"{label} answers {wanted[0]} sample(s) with {answer}; logits {wanted} are needed")
    return made


def learner(
    experiment: Experiment,
    stream: Stream,
    observers: Sequence[Observer] = (),
    *,
    network: torch.nn.Module | None = None,
) -> Learner:
    """The experiment's Learner, its model's weights drawn from the seed; `experiment` is resolved.

    Args:
        network: in place of the experiment's model.
    """
    the_method, the_sparsifier = method(experiment), sparsifier(experiment)
    the_method.check_stream(len(stream), stream.n_classes)
    if network is None:
        with seeds.given_back():
            seeds.seed_torch(seeds.derive(experiment.seed, "model"))
            network = model(experiment, stream)
        if (note := pretrained.start(network, experiment)) is not None:
            warnings.warn(note, DataWarning, stacklevel=2)
    by_name = not named.is_own(experiment.optimizer)  # whose settings `effect` has looked at
    with made_again() if by_name else nullcontext():
        return Learner(
            network,
            the_method,
            the_sparsifier,
            optimizer=optimizers.maker(experiment),
            lr_schedule=schedule(experiment),
            warmup=experiment.warmup or 0.0,
            clip_grad_norm=experiment.clip_grad_norm,
            average=experiment.average,
            epochs=experiment.epochs,
            steps=experiment.steps,
            seconds=experiment.max_seconds,
            pace=experiment.pace,
            batch_size=experiment.batch_size,
            micro_batch=experiment.micro_batch,
            drop_last=experiment.drop_last,
            seed=experiment.seed,
            device=device(experiment.device),
            backend=experiment.backend,
            layer_choice=experiment.layer_choice,
            input_shape=stream.input_shape,
            observers=observers,
            freeze=experiment.freeze,
            latents=experiment.latents,
        )
