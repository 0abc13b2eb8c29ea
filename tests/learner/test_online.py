"""Average anytime accuracy: the area under accuracy against samples, measured on the classes seen by then."""

from __future__ import annotations

import pytest
import torch
from toys import blobs

from sparcl import Anytime, Learner, SparCL, methods, online
from sparcl.errors import ConfigError
from sparcl.nn import ConvNet
from sparcl.streams import blurry, single_pass


def test_the_area_is_that_of_steps_and_its_mean_where_they_are_alike() -> None:
    assert Anytime((10, 20, 30), (90.0, 60.0, 30.0)).average == pytest.approx(60.0)
    uneven = Anytime((10, 20, 25), (90.0, 60.0, 30.0))
    assert uneven.average == pytest.approx((900 + 600 + 150) / 25)
    assert (uneven.lowest, uneven.final) == (30.0, 30.0)
    assert str(uneven) == "anytime 66.00 % (lowest 30.00 %), final 30.00 %"


def learner(**options: object) -> Learner:
    torch.manual_seed(0)
    return Learner(ConvNet(4, 2, 8), methods.ER(20), SparCL(0.5, interval=5), lr=0.05, backend="reference", **options)


def test_it_is_what_a_loop_by_hand_finds() -> None:
    stream = blurry(blobs(tasks=2, per_class=120), 0.2, disjoint=0.0)
    found = online(learner(), stream, every=155, batch_size=8, seed=5)
    by_hand, accuracies, seen = learner(), [], set()
    tests = stream.merged()[0].test
    for x, y in single_pass(stream, 8, seed=5):
        by_hand.observe(x, y)
        seen |= set(y.tolist())
        if by_hand.observed in (160, 320, 480):
            among = torch.tensor([k in seen for k in tests.labels.tolist()])
            right = by_hand.predict(tests.inputs[among]).columns == tests.labels[among]
            accuracies.append(100 * right.double().mean().item())
    assert found.samples == (160, 320, 480)
    assert found.accuracy == pytest.approx(accuracies)
    assert found.final > 50.0


def test_only_classes_seen_so_far_are_asked_for() -> None:
    found = online(learner(), blobs(tasks=2, per_class=120), every=8, batch_size=8)
    assert len(found.samples) == 60
    assert max(found.accuracy[:30]) > 75.0  # two classes of four; over all four no more than 50 were possible


def test_a_head_that_grows_is_asked_by_name() -> None:
    stream = blobs(tasks=2, per_class=120)
    fixed, grown = online(learner(), stream, every=240), (growing := learner(classes=()))
    found = online(grown, stream, every=240)
    assert set(growing.classes.names) == {0, 1, 2, 3}  # as `learn` takes them
    assert growing.evaluate([stream[0]]).class_il is not None
    growing.learn(stream[0])
    assert len(growing.classes.names) == 4
    assert abs(found.final - fixed.final) < 30.0
    assert found.final > 45.0


def test_what_cannot_be_measured_is_refused() -> None:
    stream, model = blobs(tasks=2), learner()
    with pytest.raises(ConfigError, match="every is 0"):
        online(model, stream, every=0)
    online(model, stream)
    with pytest.raises(ConfigError, match=r"skip=learner\.observed"):
        online(model, stream)
