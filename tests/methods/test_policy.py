"""Which samples stay: the balanced reservoir, and a reservoir of so many bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import ReservoirBuffer
from sparcl.methods.buffer import parse_bytes
from sparcl.methods.policy import ClassBalanced


def stream(sizes: dict[int, int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample numbers and labels of unequal classes, shuffled."""
    labels = torch.cat([torch.full((n,), k) for k, n in sizes.items()])
    order = torch.randperm(len(labels), generator=generator)
    return torch.arange(len(labels)), labels[order]


def offer(buffer: ReservoirBuffer, ids: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
    for i, y in zip(ids.split(7), labels.split(7), strict=True):
        buffer.add(i[:, None].float(), y, None, generator)


def test_a_balanced_buffer_keeps_all_of_a_small_class_and_equal_shares_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    buffer = ReservoirBuffer(30, policy="balanced")
    offer(buffer, *stream({0: 1000, 3: 6, 8: 300}, generator), generator)
    assert torch.bincount(buffer.labels, minlength=9).tolist() == [12, 0, 0, 6, 0, 0, 0, 0, 12]
    plain = ReservoirBuffer(30)
    offer(plain, *stream({0: 1000, 3: 6, 8: 300}, generator), generator)
    assert int((plain.labels == 0).sum()) > 15


def test_within_a_class_each_sample_stays_with_equal_probability() -> None:
    generator, hits, trials = torch.Generator().manual_seed(1), torch.zeros(120), 400
    for _ in range(trials):
        ids = torch.arange(140)
        labels = torch.cat([torch.zeros(120), torch.ones(20)]).long()
        order = torch.randperm(140, generator=generator)
        buffer = ReservoirBuffer(10, policy="balanced")
        # class 0 in its own order, with class 1 strewn in
        place, ones = labels[order], iter(ids[120:].tolist())
        zeros = iter(range(120))
        numbers = torch.tensor([next(zeros) if k == 0 else next(ones) for k in place.tolist()])
        offer(buffer, numbers, place, generator)
        kept = buffer.inputs[buffer.labels == 0, 0].long()
        hits[kept] += 1
    expected = float(hits.mean())
    statistic = float(((hits - expected) ** 2).sum() / expected)
    assert statistic < 120 + 5 * (2 * 120) ** 0.5
    assert abs(float(hits[:60].sum() - hits[60:].sum())) < 5 * float(hits.sum()) ** 0.5


def test_a_class_that_comes_late_takes_its_share_of_a_full_buffer() -> None:
    generator, buffer = torch.Generator().manual_seed(0), ReservoirBuffer(20, policy="balanced")
    for k in range(4):
        offer(buffer, torch.arange(50), torch.full((50,), k), generator)
    assert torch.bincount(buffer.labels).tolist() == [5, 5, 5, 5]


def test_a_balanced_buffer_goes_on_from_its_state_to_the_same_bits() -> None:
    def filled(restart: bool) -> dict[str, Any]:
        generator, buffer = torch.Generator().manual_seed(0), ReservoirBuffer(12, policy="balanced")
        ids, labels = stream({0: 90, 1: 20, 2: 5}, generator)
        offer(buffer, ids[:60], labels[:60], generator)
        if restart:
            state = buffer.state_dict()
            buffer = ReservoirBuffer(12, policy="balanced")
            buffer.load_state_dict(state)
        offer(buffer, ids[60:], labels[60:], generator)
        return buffer.state_dict()

    one, other = filled(False), filled(True)
    assert one["classes"] == other["classes"]
    assert torch.equal(one["inputs"], other["inputs"])
    assert torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize(
    "rows", [None, [[0, 1]], [[1, 1, True], [0, 1, True]], [[0, 0, True]], [[0, 1, 1]], [["0", 1, True]]]
)
def test_a_state_of_classes_that_was_bent_is_refused(rows: Any) -> None:
    with pytest.raises(CheckpointError, match="seen of a class"):
        ClassBalanced().load({"classes": rows})


def test_so_many_bytes_hold_as_many_samples_as_fit_label_and_logits_counted() -> None:
    generator, buffer = torch.Generator().manual_seed(0), ReservoirBuffer(None, max_bytes=1000)
    x, y, z = torch.zeros(64, 3, 2, 2, dtype=torch.uint8), torch.arange(64) % 4, torch.zeros(64, 4)
    buffer.make_room(x, 4, generator)
    assert buffer.capacity == 1000 // (12 + 8 + 16)
    buffer.add(x, y, z, generator)
    assert len(buffer) == 27
    assert buffer.nbytes() == 27 * 36
    buffer.make_room(x, 8, generator)  # four classes more
    buffer.add(x, y, torch.zeros(64, 8), generator)
    assert len(buffer) == 1000 // 52
    assert buffer.nbytes() <= 1000
    assert "19 samples of 19, reservoir, raw, 988 bytes of at most 1,000" in repr(buffer)
    again = ReservoirBuffer(None, max_bytes=1000)
    again.load_state_dict(buffer.state_dict())
    assert (again.capacity, len(again), again.nbytes()) == (19, 19, 988)
    with pytest.raises(CheckpointError, match="more than its 900 bytes"):
        ReservoirBuffer(None, max_bytes=900).load_state_dict(buffer.state_dict())
    few = ReservoirBuffer(None, max_bytes=1000)
    few.make_room(x, 4, generator)
    few.add(x[:5], y[:5], z[:5], generator)
    with pytest.raises(CheckpointError, match="would hold, more than its 1,000 bytes"):
        ReservoirBuffer(None, max_bytes=1000).load_state_dict({**few.state_dict(), "capacity": 1 << 40})


def test_a_smaller_room_leaves_a_uniform_sample() -> None:
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(40)
    x = torch.arange(40)
    for _ in range(1000):
        buffer = ReservoirBuffer(None, max_bytes=20 * (4 + 8))
        buffer.make_room(x[:, None].float(), 0, generator)
        buffer.add(x[:, None].float(), x, None, generator)
        buffer.max_bytes = 10 * 12
        buffer.make_room(x[:, None].float(), 0, generator)
        assert len(buffer) == 10
        hits[buffer.labels] += 1
    assert float(((hits - 250) ** 2).sum() / (250 * 0.75)) < 40 + 5 * 80**0.5


def test_bytes_for_less_than_the_least_are_refused_with_what_one_takes() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"buffer bytes 39 are too few: 2 sample\(s\) of 12 bytes.* 8, take 40"):
        ReservoirBuffer(None, max_bytes=39, least=2).make_room(x, 0, torch.Generator())
    buffer = ReservoirBuffer(None, max_bytes=40, least=2)
    buffer.make_room(x, 0, torch.Generator())
    assert buffer.capacity == 2


@pytest.mark.parametrize(
    ("given", "whole"),
    [(1, 1), ("7", 7), ("2MB", 2_000_000), ("1.5 kB", 1500), ("1GiB", 1 << 30), ("10b", 10), ("0.5KiB", 512)],
)
def test_bytes_are_read(given: int | str, whole: int) -> None:
    assert parse_bytes(given) == whole


@pytest.mark.parametrize("given", [0, -1, "", "MB", "2 M B", "1e6", "nan", "٣MB", True, "0.2B", 10**30])
def test_other_bytes_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed; use"):
        parse_bytes(given)
