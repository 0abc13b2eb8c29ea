"""An optimizer of the user's own: made, looked at and stepped, what is wrong with it in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import ASGD, SGD, Adam, AdamW, NAdam, RMSprop
from toys import Net, blobs, make_learner

from sparcl.errors import ConfigError

NAN, INFINITE = float("nan"), float("inf")


def halves(parameters: list[Any], **options: Any) -> torch.optim.Optimizer:
    """The options are of the first group alone."""
    return SGD([{"params": parameters[:2], **options}, {"params": parameters[2:]}], 0.03)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: SGD(p, 0.03, momentum=0.9, dampening=-1.0), "dampening -1 of optimizer SGD.*use 0 to less than 1"),
        (lambda p: SGD(p, 0.03, momentum=0.9, dampening=1.0), "dampening 1 of optimizer SGD is not allowed"),
        (lambda p: SGD(p, 0.03, dampening=0.5), "dampening 0.5 of optimizer SGD has no effect without momentum"),
        (lambda p: SGD(p, 0.03, momentum=1.5), "momentum 1.5 of optimizer SGD is not allowed; use 0 to less than 1"),
        (lambda p: SGD(p, 0.03, weight_decay=-1.0), "optimizer fails: ValueError: Invalid weight_decay value: -1"),
        (lambda p: SGD(p, 0.03, weight_decay=NAN), "weight_decay nan of optimizer SGD is not allowed; use 0 or more"),
        (lambda p: SGD(p, NAN), "lr nan of optimizer SGD is not allowed; use 0 or more"),
        (lambda p: SGD(p, INFINITE), "lr inf of optimizer SGD is not allowed"),
        (lambda p: SGD(p, "0.1"), "optimizer fails: TypeError"),
        (lambda p: SGD(p, 0.03, nesterov=True), "optimizer fails: ValueError: Nesterov momentum requires"),
        (lambda p: halves(p, lr=-1.0), "lr -1 of optimizer SGD is not allowed"),
        (lambda p: halves(p, weight_decay=-0.1), "weight_decay -0.1 of optimizer SGD is not allowed"),
        (lambda p: halves(p, nesterov=True), "nesterov of optimizer SGD needs momentum, and no dampening"),
        (lambda p: Adam(p, betas=(1.0, 0.9)), "optimizer fails: ValueError: Invalid beta parameter"),
        (lambda p: Adam([{"params": p, "betas": (0.9, 1.5)}]), "betas 1.5 of optimizer Adam is not allowed"),
        (lambda p: Adam(p, eps=INFINITE), "eps inf of optimizer Adam is not allowed"),
        (lambda p: RMSprop(p, alpha=2.0), "alpha 2 of optimizer RMSprop is not allowed; use 0 to less than 1"),
        (lambda p: ASGD(p, alpha=NAN), "alpha nan of optimizer ASGD is not allowed; use a number"),
        (lambda p: p[0].no_such, "optimizer fails: AttributeError"),
        (lambda: None, "optimizer fails: TypeError"),
    ],
)
def test_settings_that_pytorch_takes_and_that_are_nonsense_are_one_line(make: Callable[..., Any], told: str) -> None:
    model = Net()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match=told) as caught:
        make_learner(model=model, optimizer=make)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(old, now) for old, now in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.03, momentum=0.9, dampening=0.5),
        lambda p: SGD(p, 0.03, momentum=0.9, nesterov=True),
        lambda p: SGD(p, torch.tensor(0.03)),
        lambda p: halves(p, lr=0.0),
        lambda p: RMSprop(p, 0.001, momentum=0.5, alpha=0.0),
        lambda p: NAdam(p, 0.001),
        lambda p: ASGD(p, 0.001),
    ],
)
def test_settings_with_a_meaning_are_taken(make: Callable[..., Any]) -> None:
    learner = make_learner(optimizer=make, epochs=1)
    learner.learn(blobs()[0])
    assert learner.learned == 1


def test_a_step_that_an_optimizer_cannot_make_is_one_line() -> None:
    learner = make_learner(optimizer=lambda p: AdamW(p, capturable=True), sparsifier=None)
    with pytest.raises(ConfigError, match="optimizer AdamW fails: AssertionError: If capturable=True") as caught:
        learner.learn(blobs()[0])
    assert "\n" not in str(caught.value)
