"""Sets of positions, against Python's own sets."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl.nn.positions import SAMPLED, carried, common, kth_lowest, merged, split
from sparcl.sparsity.importance import lowest

SETS = st.sets(st.integers(0, 40))


def ascending(values: set[int]) -> torch.Tensor:
    return torch.tensor(sorted(values), dtype=torch.int64)


@given(SETS, SETS)
def test_what_two_sets_have_in_common(old: set[int], new: set[int]) -> None:
    in_old, in_new = common(ascending(old), ascending(new), 41)
    assert ascending(old)[in_old].tolist() == ascending(new)[in_new].tolist() == sorted(old & new)


@given(SETS, SETS, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_values_follow_their_positions(old: set[int], new: set[int], kind: torch.dtype) -> None:
    values = (ascending(old) / 8.0).to(kind)  # of each position an eighth
    places = common(ascending(old), ascending(new), 41)
    for fresh in (-1.0, torch.tensor(-1.0)):
        follow = carried(values, *places, len(new), fresh)
        assert follow.dtype == values.dtype
        assert follow.tolist() == [p / 8 if p in old else -1.0 for p in sorted(new)]


@given(SETS, st.randoms())
def test_a_set_in_two(values: set[int], random: Random) -> None:
    positions = ascending(values)
    mask = torch.tensor([random.random() < 0.5 for _ in values], dtype=torch.bool)
    there, others = split(positions, mask)
    assert torch.equal(there, positions[mask])
    assert torch.equal(others, positions[~mask])


@given(SETS, SETS)
def test_two_sets_in_one(one: set[int], other: set[int]) -> None:
    assert merged(ascending(one), ascending(other - one)).tolist() == sorted(one | other)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.data())
def test_the_kth_lowest(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    before = torch.tensor(values)
    assert float(kth_lowest(before, k)) == sorted(values)[k - 1]
    assert before.tolist() == values  # left in its order


def test_of_bfloat16_scores_the_lowest_are_found_too() -> None:
    scores = torch.tensor([0.5, 0.25, 3.0, 0.25, 0.125]).bfloat16()
    assert lowest(scores, 2).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("kind", ["spread", "equal", "few", "infinite", "misleading", "ascending"])
@pytest.mark.parametrize("k", [1, 2, 3000, 9000, 9999, 10000])
def test_the_kth_lowest_of_many(kind: str, k: int) -> None:
    scores = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    if kind == "equal":
        scores[:] = 0.25
    elif kind == "few":
        scores = (scores * 4).floor()
    elif kind == "infinite":
        scores[scores > 0.5] = torch.inf
    elif kind == "misleading":  # what the sample is of is nothing like the rest
        scores[::SAMPLED] += 5.0
    elif kind == "ascending":
        scores = scores.sort().values
    assert float(kth_lowest(scores, k)) == sorted(scores.tolist())[k - 1]
