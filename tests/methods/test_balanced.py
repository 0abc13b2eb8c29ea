"""The memory of equal shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import Net, blobs

from sparcl import Learner
from sparcl.errors import ConfigError
from sparcl.methods import AGEM, DER, ERACE, FDR, DERpp
from sparcl.methods.balanced import BalancedBuffer


def filled(capacity: int, sizes: list[int]) -> BalancedBuffer:
    """Group g arrives with samples 100·g, 100·g + 1, ... of label g."""
    buffer = BalancedBuffer(capacity)
    for group, size in enumerate(sizes):
        labels = torch.full((size,), group)
        inputs = torch.arange(100 * group, 100 * group + size).view(-1, 1)
        buffer.admit(inputs, labels, inputs.float() / 2, labels)
    return buffer


def test_every_group_keeps_its_first_samples_up_to_an_equal_share() -> None:
    buffer = filled(10, [20, 20, 2])
    assert len(buffer) == 3 + 3 + 2
    assert buffer.inputs is not None
    assert buffer.logits is not None
    assert buffer.inputs[:8, 0].tolist() == [0, 1, 2, 100, 101, 102, 200, 201]
    assert torch.equal(buffer.logits[:8], buffer.inputs[:8] / 2)
    drawn = buffer.sample(8, torch.Generator().manual_seed(0), lambda inputs: inputs)
    assert drawn is not None
    assert sorted(drawn.inputs.flatten().tolist()) == [0, 1, 2, 100, 101, 102, 200, 201]


def test_more_groups_than_places_are_refused() -> None:
    buffer = filled(3, [4, 4, 4])
    assert len(buffer) == 3
    with pytest.raises(ConfigError, match="buffer size 3 cannot hold one sample of 4 tasks or classes each"):
        buffer.admit(torch.zeros(1, 1), torch.tensor([3]), None, torch.tensor([3]))


def test_the_state_goes_on_as_the_buffer_itself_would() -> None:
    buffer, again = filled(10, [20, 20]), BalancedBuffer(10)
    again.load_state_dict(buffer.state_dict())
    for one in (buffer, again):
        one.admit(torch.full((9, 1), 7), torch.full((9,), 5), torch.zeros(9, 1), torch.full((9,), 5))
    assert again.nbytes() == buffer.nbytes() > 0
    assert buffer.state_dict().keys() == {"seen", "inputs", "labels", "logits", "groups"}
    for name, value in buffer.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.state_dict()[name]))


@pytest.mark.parametrize("make", [AGEM, FDR])
def test_the_shares_are_drawn_at_random(make: Any) -> None:
    held = []
    for seed in (0, 1):
        method = make(8)
        learner = Learner(Net(), method, batch_size=10, seed=seed)
        learner.learn(blobs(2)[0])
        assert method.buffer.inputs is not None
        held.append({float(x.sum()) for x in method.buffer.inputs[:8]})
    assert held[0] != held[1]


@pytest.mark.parametrize("make", [DER, DERpp, ERACE, AGEM, FDR])
def test_a_buffer_of_one_sample_is_refused_where_it_is_replayed_alone(make: Any) -> None:
    with pytest.raises(ConfigError, match="it replays alone, use 2 or more"):
        make(1)
    make(2)
