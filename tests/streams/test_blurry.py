"""Blurred borders and single passes: no sample is lost or doubled, and a seed is all that decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from sparcl.errors import ConfigError
from sparcl.streams import Stream, blurry, from_arrays, make_task, seq_digits, single_pass


def numbered(tasks: int = 5, per_class: int = 40) -> Stream:
    """Each sample is its own number; two classes a task."""
    labels = np.repeat(np.arange(2 * tasks), per_class)
    inputs = np.arange(len(labels), dtype=np.float32)[:, None]
    return from_arrays(inputs, labels, inputs, labels)


def ids(x: Tensor) -> list[int]:
    return [int(k) for k in x.flatten()]


def test_every_sample_is_there_once_with_its_label() -> None:
    stream = numbered()
    mixed = blurry(stream, 0.3, disjoint=0.5, seed=3)
    assert sorted(k for task in mixed for k in ids(task.train.inputs)) == list(range(400))
    for task in mixed:
        assert [k // 40 for k in ids(task.train.inputs)] == task.train.labels.tolist()
        assert set(task.classes) == set(task.train.labels.tolist())


def test_two_tasks_have_a_border_to_blur() -> None:
    first, second = blurry(numbered(2), 0.3, disjoint=0.0, seed=3)
    assert sorted(ids(first.train.inputs) + ids(second.train.inputs)) == list(range(160))
    assert set(first.classes) == set(second.classes) == {0, 1, 2, 3}


def test_half_of_the_classes_stay_and_of_the_others_the_share_leaves() -> None:
    stream = numbered()
    mixed = blurry(stream, 0.25, disjoint=0.5)
    own = [Counter(task.train.labels.tolist()) for task in mixed]
    at_home = [own[k // 2][k] for k in range(10)]
    disjoint = {k for k in range(10) if at_home[k] == 40 and sum(k in c for c in own) == 1}
    assert len(disjoint) == 5
    assert all(len(disjoint & {2 * t, 2 * t + 1}) == 1 for t in range(5))
    dealt = sum(40 - own[k // 2][k] for k in range(10))
    assert 0 < dealt <= 50  # a tenth of what left, 5 * 10, may come back to its own task
    for k in set(range(10)) - disjoint:
        assert 30 <= own[k // 2][k] <= 40
        assert sum(k in counts for counts in own) >= 3, "it is dealt to many tasks"
    assert [len(task.train) for task in mixed] == [80] * 5


def test_at_the_ends_of_the_ranges() -> None:
    stream = numbered()
    for same in (blurry(stream, 0.0), blurry(stream, 0.5, disjoint=1.0)):
        assert all(torch.equal(a.train.labels, b.train.labels) for a, b in zip(stream, same, strict=True))
    every = blurry(stream, 0.9, disjoint=0.0)
    assert all(len(task.classes) == 10 for task in every)


def test_tests_stay_where_their_class_came_from() -> None:
    stream = numbered()
    for before, after in zip(stream, blurry(stream), strict=True):
        assert after.test is before.test
        assert set(before.classes) <= set(after.classes)


def test_a_seed_is_all_that_decides() -> None:
    stream = numbered()
    one, same, other = (blurry(stream, seed=s) for s in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint != blurry(stream, 0.2, seed=1).fingerprint != stream.fingerprint
    for a, b in zip(one, same, strict=True):
        assert torch.equal(a.train.inputs, b.train.inputs)
    assert any(ids(a.train.inputs) != ids(b.train.inputs) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blur": 1.0}, "blur 1.0 is not allowed"),
        ({"blur": -0.1}, "blur -0.1 is not allowed"),
        ({"disjoint": 1.5}, "disjoint 1.5 is not allowed"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_outside_their_ranges_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blurry(numbered(2), **options)  # type: ignore[arg-type]


def test_a_stream_without_borders_to_blur_is_refused() -> None:
    with pytest.raises(ConfigError, match="no border to blur"):
        blurry(numbered(1))
    with pytest.raises(ConfigError, match="share classes already"):
        blurry(blurry(numbered()))


@pytest.mark.parametrize("size", [1, 7, 10, 399])
def test_a_single_pass_brings_each_sample_once_and_in_the_order_of_tasks(size: int) -> None:
    stream = numbered()
    found = list(single_pass(stream, size, seed=4))
    seen = [k for x, _ in found for k in ids(x)]
    left_out = 400 % size == 1
    assert len(seen) == len(set(seen)) == 400 - left_out
    labels = [k for _, y in found for k in y.tolist()]
    assert labels == [k // 40 for k in seen]
    assert [k // 2 for k in labels] == sorted(k // 2 for k in labels)
    assert [len(y) for _, y in found[:-1]] == [size] * (len(found) - 1)
    assert seen != sorted(seen)


def test_a_single_pass_goes_on_where_it_was_left() -> None:
    stream = numbered()
    whole = list(single_pass(stream, 7, seed=2))
    rest = list(single_pass(stream, 7, seed=2, skip=21))
    assert len(rest) == len(whole) - 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[3:], rest, strict=True))
    assert list(single_pass(stream, 7, skip=10**6)) == []
    assert ids(whole[0][0]) != ids(next(single_pass(stream, 7, seed=3))[0])


@pytest.mark.parametrize(("options", "said"), [({"batch_size": 0}, "batch size 0"), ({"skip": -1}, "skip -1")])
def test_a_pass_that_cannot_be_is_refused_at_once(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        single_pass(numbered(), **options)


def test_real_images_stay_bytes() -> None:
    x, y = next(single_pass(blurry(seq_digits())))
    assert (x.dtype, x.shape, y.dtype) == (torch.uint8, (10, 1, 8, 8), torch.int64)


def test_a_blurred_class_never_leaves_its_task_altogether() -> None:
    stream = numbered(per_class=3)
    for seed in range(5):
        for before, after in zip(stream, blurry(stream, 0.9, disjoint=0.0, seed=seed), strict=True):
            assert set(before.classes) <= set(after.classes)


def test_some_tasks_of_a_stream_are_passed_over_and_not_blurred() -> None:
    stream = numbered()
    x, _ = next(single_pass(stream[1:3], 5))
    assert all(80 <= k < 160 for k in ids(x))
    with pytest.raises(ConfigError, match="a tuple of tasks cannot be blurred: give the stream itself"):
        blurry(stream[1:3])  # type: ignore[arg-type]


def test_classes_of_the_same_place_in_two_tasks_are_not_taken_for_one() -> None:
    x = np.zeros((4, 3), np.float32)
    named = [make_task(x, ["a", "b", "a", "b"]), make_task(x, ["c", "d", "c", "d"])]
    with pytest.raises(ConfigError, match="give a stream, or observe x with the names themselves"):
        single_pass(named)
