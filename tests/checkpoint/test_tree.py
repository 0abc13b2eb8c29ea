import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcl.checkpoint import tree
from sparcl.errors import CheckpointError

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.sampled_from(
    [torch.zeros(0), torch.tensor(3), torch.ones(2, 3, dtype=torch.bool), torch.tensor([math.nan, -0.0, math.inf])]
)
names = st.text("abc.é 0", min_size=1, max_size=3)
states = st.dictionaries(
    names, st.recursive(scalars | tensors, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=8)
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_a_state_survives_json_and_tensors_to_the_last_bit(state: tree.State) -> None:
    flat, found = tree.flatten(state)
    again = tree.unflatten(tree.from_json(tree.to_json(flat), "it"), found)
    assert tree.difference(state, again) is None


@pytest.mark.parametrize("key", ["a/b", "$tensor", 3])
def test_keys_that_could_be_taken_for_something_else_are_refused(key: object) -> None:
    with pytest.raises(CheckpointError, match="key"):
        tree.flatten({"part": {key: 1}})


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.ones(2, 2).to_sparse(), b"bytes"])
def test_what_has_no_plain_form_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="part"):
        tree.flatten({"part": value})


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"$tensor": "b"}},
        {"a": {"$tensor": "a", "more": 1}},
        {"a": {"$float": "12"}},
        {"a": {"$tensor": ["a"]}},
        [],
        {"a": 1},
    ],
)
def test_json_that_does_not_fit_its_tensors_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError):
        tree.unflatten(value, {"a": torch.ones(1)})


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(CheckpointError, match="JSON"):
        tree.from_json(b"[" * 100_000, "it")
    with pytest.raises(CheckpointError, match="deep"):
        tree.unflatten(json.loads("[" * 60 + "]" * 60), {})


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b"NaN", b"Infinity", b"\xff", b"", b"1" * 5000])
def test_json_is_read_strictly(text: bytes) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        tree.from_json(text, "it")


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1.0}}, "a/b"),
        ({"a": 1}, {"a": True}, "a"),
        ({"a": 1}, {}, "a"),
        ({}, {"a": 1}, "a"),
        ({"a": [1, 2]}, {"a": [1]}, "a/1"),
        ({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)}, "a"),
        ({"a": torch.ones(1)}, {"a": torch.ones(1, dtype=torch.float64)}, "a"),
        ({"a": torch.ones(1)}, {"a": 1.0}, "a"),
        ({"a": math.nan}, {"a": math.nan}, None),
    ],
)
def test_difference_names_the_place(one: object, other: object, where: str | None) -> None:
    assert tree.difference(one, other) == where
