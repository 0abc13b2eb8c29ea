"""Settings that would change nothing in a run, or make it diverge: refused where it begins.

A run that began before one of them was refused goes on, and answers: `Experiment` itself takes them.
"""

from __future__ import annotations

from sparcl import methods, named
from sparcl.errors import ConfigError
from sparcl.run.experiment import Experiment
from sparcl.run.optimizers import MOMENTUM, USUAL
from sparcl.sparsity.ddr import DDR, MISCLASSIFIED
from sparcl.streams.task import Stream


def check(experiment: Experiment) -> None:
    """Refuse a setting that does not do what it says; `experiment` is resolved.

    Raises:
        ConfigError: there is one.
    """
    sgd, method = experiment.optimizer in (None, USUAL), methods.find(experiment.method)
    if sgd and not 0 <= (experiment.momentum or 0) < 1:
        raise ConfigError(f"momentum {experiment.momentum:g} is not allowed; {MOMENTUM}")
    if method.learns_all_at_once and experiment.single_head:
        raise ConfigError(
            f"method {experiment.method} learns all tasks at once, so that single head masks nothing: leave it out"
        )
    if experiment.sparsifier == "sparcl":
        _check_ranking(experiment)
        DDR(experiment.sample_removal, score=experiment.ddr_score or MISCLASSIFIED)
    if experiment.sparsity == 0 and not named.is_own(experiment.sparsifier):
        _check_dense_mask(experiment)
    if sgd:
        _check_dampening(experiment.optimizer_options.get("dampening", 0.0), experiment.momentum)


def _check_dampening(dampening: float, momentum: float | None) -> None:
    """Of SGD's momentum what is taken away; PyTorch takes any number."""
    if not 0 <= dampening < 1:
        raise ConfigError(f"optimizer option dampening {dampening:g} is not allowed; use 0 to less than 1")
    if dampening and not momentum:
        raise ConfigError("optimizer option dampening goes with --momentum, which is 0: give one, or leave it out")


def _check_ranking(experiment: Experiment) -> None:
    """By gradients TDM ranks for `cwi` alone, where its mask moves, and DGM where it freezes any."""
    moves = experiment.importance == "cwi" and experiment.sparsity
    if experiment.ranking != "step" and not moves and not experiment.gradient_sparsity:
        why = f"importance {experiment.importance}" if experiment.sparsity else "sparsity 0"
        raise ConfigError(
            f"ranking {experiment.ranking} changes nothing: with {why} and gradient sparsity 0 nothing ranks by"
            " gradients; leave it out"
        )


def _check_dense_mask(experiment: Experiment) -> None:
    """At sparsity 0 every weight is in the mask."""
    usual = {"distribution": "uniform", "first_mask": "magnitude" if experiment.init else "random", "importance": "cwi"}
    for name, value in usual.items():
        if (given := getattr(experiment, name)) not in (None, value):
            raise ConfigError(
                f"{name.replace('_', ' ')} {given} changes nothing at sparsity 0, where every weight is active: leave"
                " it out"
            )


def check_stream(experiment: Experiment, stream: Stream) -> None:
    """Refuse what the data gives no effect to (ConfigError)."""
    if experiment.limit_test_per_class is not None and not stream.tested:
        raise ConfigError(
            f"limit test per class {experiment.limit_test_per_class} changes nothing: there are no test samples"
            " (test/<class>/*); leave it out"
        )
