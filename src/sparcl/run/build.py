"""From an experiment's settings to its objects."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import torch

from sparcl import methods, nn, seeds, streams
from sparcl.errors import ConfigError, DataWarning
from sparcl.learner import Learner
from sparcl.methods.method import Method
from sparcl.run import pretrained
from sparcl.run.experiment import Experiment
from sparcl.sparsity import SPARSIFIERS
from sparcl.sparsity.patterns import make_pattern
from sparcl.sparsity.sparcl import SparCL
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.files import Progress
from sparcl.streams.task import Stream

SETTINGS = ("buffer_size", "single_head")
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
        lazy=experiment.lazy,
        progress=progress,
    )
    return loaded if (most := experiment.limit_test_per_class) is None else loaded.limit_test(most)


def method(experiment: Experiment) -> Method:
    """The experiment's method; an option that it does not have is refused with those it has."""
    kind = methods.find(experiment.method)
    accepted = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    own = [name for name in accepted if name not in SETTINGS]
    for name in experiment.method_options:
        if name in SETTINGS:
            raise ConfigError(f"{name} is no option of a method but a setting of its own: --{name.replace('_', '-')}")
        if name not in own:
            allowed = f"allowed: {', '.join(own)}" if own else "it has none"
            raise ConfigError(f"method {experiment.method} has no option {name!r}; {allowed}")
    if experiment.single_head and "single_head" not in accepted:
        raise ConfigError(f"method {experiment.method} has no single head; leave it out")
    options: dict[str, object] = dict(experiment.method_options)
    if experiment.buffer_size is not None:
        options["buffer_size"] = experiment.buffer_size
    if experiment.single_head:
        options["single_head"] = True
    return kind(**options)  # type: ignore[arg-type]


def sparsifier(experiment: Experiment) -> Sparsifier:
    """The experiment's sparsifier; `experiment` is resolved."""
    if experiment.sparsifier == "dense":
        return Sparsifier()
    assert experiment.sparsity is not None
    if experiment.sparsifier == "sparcl":
        assert experiment.gradient_sparsity is not None
        assert experiment.sample_removal is not None
        return SparCL(
            experiment.sparsity,
            gradients=experiment.gradient_sparsity,
            samples=experiment.sample_removal,
            pattern=experiment.pattern,
            block_size=experiment.block_size,
            distribution=experiment.distribution,
            prunable=experiment.prunable,
            ddr_score=experiment.ddr_score or "misclassified",
            ranking=experiment.ranking or "step",
            use_gradients=experiment.importance != "magnitude",
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


def device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda is not available here; use cpu or auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def check(experiment: Experiment) -> None:
    """Refuse what the parts themselves refuse, before data is read; `experiment` is resolved."""
    method(experiment)
    sparsifier(experiment)
    device(experiment.device)


def learner(experiment: Experiment, stream: Stream) -> Learner:
    """The experiment's Learner, its model's weights drawn from the seed; `experiment` is resolved."""
    assert experiment.model is not None
    assert experiment.lr is not None
    the_method, the_sparsifier = method(experiment), sparsifier(experiment)
    the_method.check_stream(len(stream), stream.n_classes)
    with seeds.given_back():
        seeds.seed_torch(seeds.derive(experiment.seed, "model"))
        model = nn.build(experiment.model, stream.n_classes, stream.input_shape, experiment.width)
    if (note := pretrained.start(model, experiment)) is not None:
        warnings.warn(note, DataWarning, stacklevel=2)
    return Learner(
        model,
        the_method,
        the_sparsifier,
        lr=experiment.lr,
        weight_decay=experiment.weight_decay or 0.0,
        epochs=experiment.epochs,
        steps=experiment.steps,
        seconds=experiment.max_seconds,
        pace=experiment.pace,
        batch_size=experiment.batch_size,
        drop_last=experiment.drop_last,
        seed=experiment.seed,
        device=device(experiment.device),
        backend=experiment.backend,
        layer_choice=experiment.layer_choice,
        input_shape=stream.input_shape,
    )
