"""Settings that do not go together, or that nothing would look at: refused, never ignored.

Which one is told first, where several are wrong, is the order of `check`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sparcl import methods, named
from sparcl.errors import ConfigError
from sparcl.learner import micro
from sparcl.learner.average import check_share
from sparcl.nn import FLOAT32
from sparcl.recorded import made_again
from sparcl.run.toml import toml_value
from sparcl.sparsity.ddr import DDR, MISCLASSIFIED
from sparcl.sparsity.patterns import check_block
from sparcl.streams import STREAMS

if TYPE_CHECKING:
    from sparcl.run.experiment import Experiment

BUDGETS = ("epochs", "steps", "max_seconds")
"""How long a task is trained: one of these."""

OF_BUFFER = ("buffer_size", "buffer_bytes", "buffer_policy", "buffer_storage")
"""Settings of the buffer, which a method may not have."""

OF_SPARSE = ("pattern", "block_size", "distribution", "prunable", "first_mask")
"""Settings that a dense network has no use for."""

OF_SPARCL = ("gradient_sparsity", "sample_removal", "ddr_score", "importance", "ranking")
"""Settings of SparCL's parts, which no other sparsifier has."""


def check(experiment: Experiment) -> None:
    """Refuse what could only be ignored.

    Raises:
        ConfigError: two settings that do not go together, or one that has no effect beside the others.
    """
    _check_budget(experiment)
    _check_data(experiment)
    _check_given(experiment)
    _check_method(experiment)
    _check_sparsifier(experiment)
    _check_computed(experiment)
    micro.check(experiment.micro_batch, experiment.batch_size, methods.find(experiment.method))
    methods.check_combination(experiment.method, experiment.sparsifier)


def removal(experiment: Experiment) -> DDR:
    """DDR as it is asked for; whether it does anything is looked at where a run begins (`effect`)."""
    with made_again():
        return DDR(experiment.sample_removal, score=experiment.ddr_score or MISCLASSIFIED)


def _check_budget(experiment: Experiment) -> None:
    if len(budgets := [name for name in BUDGETS if getattr(experiment, name) is not None]) > 1:
        told = " and ".join(f"--{name.replace('_', '-')}" for name in budgets)
        raise ConfigError(f"{told} are both given; a task's budget is one of: epochs, steps, max seconds")


def _check_data(experiment: Experiment) -> None:
    latents, stream = experiment.latents, experiment.stream
    if latents is not None and experiment.freeze is None:
        raise ConfigError(f"latents {latents} are what a frozen part answers: name it with --freeze")
    if latents is not None and experiment.augment not in (None, ("none",)):
        raise ConfigError(f"latents {latents} are computed once for each sample: leave augment out, or none")
    if experiment.class_order is not None and experiment.class_order_seed is not None:
        raise ConfigError("class order and class order seed are both given: leave one of them out")
    if experiment.lazy is not None and not (named.is_own(stream) or STREAMS[stream].resizes):
        able = ", ".join(name for name, entry in STREAMS.items() if entry.resizes)
        raise ConfigError(f"lazy goes with a stream of files: {able}, not {stream}")


def _check_given(experiment: Experiment) -> None:
    """What a run writes down for the next one."""
    if experiment.pace and experiment.max_seconds is None:
        raise ConfigError("a pace goes with max seconds")
    if experiment.fitted and experiment.max_memory is None:
        raise ConfigError("fitted goes with max memory")
    if experiment.max_memory is not None and experiment.device == "cuda":
        raise ConfigError("max memory is of a process on the CPU, not of cuda; use device cpu")


def _check_method(experiment: Experiment) -> None:
    method = methods.find(experiment.method)
    check_share(experiment.average, method)
    if experiment.scenario is not None and experiment.scenario not in method.scenarios:
        able = ", ".join(method.scenarios)
        raise ConfigError(f"method {experiment.method} does not support {experiment.scenario}; it supports: {able}")
    of_buffer = [name for name in OF_BUFFER if getattr(experiment, name) is not None]
    if of_buffer and not methods.has_buffer(method):
        replay = ", ".join(n for n, m in methods.METHODS.items() if issubclass(m, methods.RehearsalMethod))
        told = of_buffer[0].replace("_", "-")
        raise ConfigError(f"method {experiment.method} has no buffer; --{told} goes with: {replay}")


def _check_sparsifier(experiment: Experiment) -> None:
    sparsifier = experiment.sparsifier
    if sparsifier == "dense" and experiment.sparsity:
        raise ConfigError(f"sparsity {experiment.sparsity} goes with a sparsifier; dense has none (leave it out, or 0)")
    usual = {f.name: f.default for f in dataclasses.fields(experiment)}
    unusual = [name for name in OF_SPARSE if (getattr(experiment, name) or None) != usual[name]]
    if sparsifier == "dense" and unusual:
        told = f"{unusual[0].replace('_', ' ')} {toml_value(getattr(experiment, unusual[0]))}"
        otherwise = "" if usual[unusual[0]] is None else f", or {usual[unusual[0]]}"
        raise ConfigError(f"{told} goes with a sparsifier; dense has none (leave it out{otherwise})")
    check_block(experiment.block_size, [experiment.pattern])
    if sparsifier == "snip" and experiment.first_mask is not None:
        raise ConfigError("first mask goes with another sparsifier: snip's comes from gradients (leave it out)")
    if experiment.sparsifier_options and not named.is_own(sparsifier):
        raise ConfigError("sparsifier options go with a sparsifier of your own, --sparsifier package.module:Class")
    given = [name for name in OF_SPARCL if getattr(experiment, name) is not None]
    if sparsifier != "sparcl" and given:
        raise ConfigError(f"{given[0].replace('_', ' ')} is SparCL's alone; sparsifier {sparsifier} has none")
    removal(experiment)


def _check_computed(experiment: Experiment) -> None:
    if experiment.backend == "native" and experiment.device == "cuda":
        raise ConfigError("backend native is for the CPU; on cuda use backend reference or auto")
    if experiment.activations in (None, FLOAT32):
        return
    for other in ("max_memory", "micro_batch", "latents"):  # of which the first may choose the second
        if getattr(experiment, other) is not None:
            told = other.replace("_", " ")
            raise ConfigError(f"activations {experiment.activations} and {told} do not go together: leave one out")
    if experiment.backend == "reference" or experiment.device == "cuda":
        raise ConfigError(f"activations {experiment.activations} are of backend native, on the CPU")
