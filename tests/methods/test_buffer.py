"""The reservoir: uniform over everything seen, as stored, and the same after a restart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparcl.errors import DataError
from sparcl.methods import ReservoirBuffer


def identity(inputs: Tensor) -> Tensor:
    return inputs


def fill(buffer: ReservoirBuffer, samples: int, batch: int, generator: torch.Generator) -> None:
    for ids in torch.arange(samples).split(batch):
        buffer.add(ids[:, None].to(torch.uint8), ids, ids[:, None] * torch.ones(1, 3), generator)


def test_every_sample_seen_is_kept_with_equal_probability() -> None:
    samples, capacity, trials = 200, 20, 500
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(samples)
    for _ in range(trials):
        buffer = ReservoirBuffer(capacity)
        fill(buffer, samples, 10, generator)
        assert buffer.labels is not None
        assert len(buffer.labels.unique()) == len(buffer) == capacity
        hits[buffer.labels] += 1
    expected = trials * capacity / samples
    statistic = float(((hits - expected) ** 2).sum() / (expected * (1 - capacity / samples)))
    assert abs(statistic - samples) < 5 * (2 * samples) ** 0.5  # χ² of about 200 degrees of freedom
    early, late = hits[: samples // 2].sum(), hits[samples // 2 :].sum()
    assert abs(float(early - late)) < 5 * (trials * capacity) ** 0.5


def test_slots_follow_vitters_algorithm_r_and_the_later_of_two_stays() -> None:
    buffer = ReservoirBuffer(3)
    draws = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    by_hand = [0, 1, 2]
    for seen in range(3, 50):
        slot = int(draws[seen] * (seen + 1))
        if slot < 3:
            by_hand[slot] = seen
    fill(buffer, 50, 50, torch.Generator().manual_seed(5))
    assert buffer.labels is not None
    assert buffer.labels.tolist() == by_hand
    assert buffer.inputs is not None
    assert buffer.inputs[:, 0].tolist() == by_hand
    assert buffer.logits is not None
    assert buffer.logits[:, 1].tolist() == by_hand


def test_the_sample_after_the_buffer_is_full_may_be_let_go() -> None:
    """The k-th sample stays with probability capacity / k: of 400 second samples offered to one slot, half."""
    generator, stayed = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        buffer = ReservoirBuffer(1)
        fill(buffer, 2, 1, generator)
        assert buffer.labels is not None
        stayed += int(buffer.labels[0] == 1)
    assert abs(stayed - 200) < 5 * 10  # binomial(400, .5): standard deviation 10


@pytest.mark.parametrize(("samples", "count", "expected"), [(2, 5, 2), (7, 5, 5), (30, 5, 5), (30, 50, 10)])
def test_a_batch_holds_different_samples_at_most_all(samples: int, count: int, expected: int) -> None:
    buffer, generator = ReservoirBuffer(10), torch.Generator().manual_seed(0)
    fill(buffer, samples, 4, generator)
    replay = buffer.sample(count, generator, identity)
    assert replay is not None
    assert len(replay.labels.unique()) == len(replay.labels) == expected
    assert replay.inputs[:, 0].tolist() == replay.labels.tolist()  # inputs, labels and logits belong together
    assert replay.logits is not None
    assert replay.logits[:, 2].tolist() == replay.labels.tolist()


def test_samples_are_drawn_uniformly() -> None:
    buffer, generator = ReservoirBuffer(10), torch.Generator().manual_seed(0)
    fill(buffer, 10, 10, generator)
    hits = torch.zeros(10)
    for _ in range(2000):
        replay = buffer.sample(3, generator, identity)
        assert replay is not None
        hits[replay.labels] += 1
    assert float((hits - 600).abs().max()) < 5 * (2000 * 0.3 * 0.7) ** 0.5


def test_stored_as_given_and_augmented_anew_at_every_draw() -> None:
    buffer, generator = ReservoirBuffer(4), torch.Generator().manual_seed(0)
    buffer.add(torch.full((4, 2), 7, dtype=torch.uint8), torch.arange(4), None, generator)
    assert buffer.inputs is not None
    assert buffer.inputs.dtype == torch.uint8
    calls = iter((0.5, 2.0))
    drawn = [buffer.sample(4, generator, lambda raw: raw * next(calls)) for _ in range(2)]
    assert [float(d.inputs.mean()) for d in drawn if d is not None] == [3.5, 14.0]
    assert drawn[0] is not None
    assert drawn[0].logits is None
    assert bool((buffer.inputs == 7).all())
    assert buffer.nbytes() == 4 * 2 + 4 * 8


def test_empty_until_something_is_offered() -> None:
    buffer = ReservoirBuffer(4)
    assert len(buffer) == 0
    assert buffer.nbytes() == 0
    assert buffer.sample(2, torch.Generator(), identity) is None
    buffer.load_state_dict(buffer.state_dict())
    assert buffer.sample(2, torch.Generator(), identity) is None


@pytest.mark.parametrize("samples", [3, 8, 40])
def test_interrupted_and_resumed_is_uninterrupted(samples: int) -> None:
    one, other = ReservoirBuffer(8), ReservoirBuffer(8)
    fill(one, samples, 5, torch.Generator().manual_seed(0))
    state = one.state_dict()
    assert all(len(state[key]) == min(samples, 8) for key in ("inputs", "labels", "logits"))  # what is filled
    other.load_state_dict(state)
    for buffer in (one, other):
        fill(buffer, 60, 7, torch.Generator().manual_seed(1))
    for key in ("inputs", "labels", "logits"):
        assert torch.equal(getattr(one, key), getattr(other, key))
    assert one.seen == other.seen == samples + 60


def test_memory_is_taken_for_what_is_held_whatever_the_capacity() -> None:
    one, other = ReservoirBuffer(10**12), ReservoirBuffer(10**12)
    fill(one, 60, 7, torch.Generator().manual_seed(0))
    other.load_state_dict(one.state_dict())
    assert len(one) == 60
    assert other.nbytes() == one.nbytes() == 64 * (1 + 8 + 3 * 4)
    assert other.labels is not None
    assert other.labels[:60].tolist() == list(range(60))


def test_a_loaded_buffer_has_memory_of_its_own() -> None:
    one, other = ReservoirBuffer(8), ReservoirBuffer(8)
    fill(one, 8, 8, torch.Generator().manual_seed(0))
    other.load_state_dict(one.state_dict())
    fill(other, 60, 7, torch.Generator().manual_seed(1))
    assert one.labels is not None
    assert one.labels.tolist() == list(range(8))


@pytest.mark.parametrize("inputs", [torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.uint8)])
def test_a_task_with_samples_of_another_kind_is_refused(inputs: Tensor) -> None:
    buffer = ReservoirBuffer(5)
    buffer.check_inputs(inputs)
    fill(buffer, 5, 5, torch.Generator())
    with pytest.raises(DataError, match=r"the task's samples are .*, but those in the buffer are uint8 \[1\]"):
        buffer.check_inputs(inputs)
    buffer.check_inputs(torch.zeros(9, 1, dtype=torch.uint8))
