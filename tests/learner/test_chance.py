"""A network that learns nothing says so, and one that learns does not, whatever is removed or rehearsed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import Net, blobs

from sparcl import DDR, Learner, SparCL
from sparcl.methods import DERpp, PackNet
from sparcl.run.progress import not_learned

Told = list[dict[str, Any]]


class Deaf(nn.Module):
    """Answers the same whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.logits(x.new_zeros(len(x), 1))
        return logits


def told(learner: Learner) -> Told:
    events: Told = []
    learner.observers.append(lambda event, figures: events.append(figures) if event == "learner.chance" else None)
    for task in blobs(2, per_class=100)[learner.learned :]:
        learner.learn(task)
    return events


def test_a_network_that_guesses_is_told_of_after_each_task() -> None:
    events = told(Learner(Deaf(), lr=0.1, epochs=5, batch_size=20))
    assert [e["task"] for e in events] == [0, 1]
    assert all(e["chance"] == 0.5 and abs(e["accuracy"] - 0.5) < 0.2 for e in events)
    assert not_learned(events[1]).startswith("task 2 was not learned: in its last epoch ")


@pytest.mark.parametrize(
    ("method", "sparsifier"),
    [(None, None), (DERpp(20), SparCL(0.5)), (DERpp(20), DDR(0.9)), (PackNet(), None)],
)
def test_a_network_that_learns_is_not(method: Any, sparsifier: Any) -> None:
    assert told(Learner(Net(), method, sparsifier, lr=0.1, epochs=10, batch_size=20)) == []


def test_of_too_few_samples_nothing_is_said() -> None:
    learner = Learner(Deaf(), lr=0.1, batch_size=4)
    events: list[str] = []
    learner.observers.append(lambda event, _: events.append(event))
    for task in blobs(2, per_class=4):
        learner.learn(task)
    assert "learner.chance" not in events


def test_what_was_counted_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(event: str, figures: dict[str, Any]) -> None:
        if event == "step.end" and (figures["epoch"], figures["step"]) == (1, 3):
            raise StopError

    whole = told(Learner(Deaf(), lr=0.1, epochs=2, batch_size=20))
    first = Learner(Deaf(), lr=0.1, epochs=2, batch_size=20, observers=[stop])
    with pytest.raises(StopError):
        first.learn(blobs(2, per_class=100)[0])
    assert first.position is not None
    first.save(tmp_path)
    second = Learner.load(tmp_path, Deaf())
    assert second.position is not None
    assert second.position.right == first.position.right > 0
    events = told(second)
    assert len(events) == 2
    assert not any(math.isnan(e["accuracy"]) for e in whole + events)


def test_what_was_learned_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    """A task that an epoch has learned is not told of as guessed because the run was stopped in its last epoch."""

    class StopError(Exception):
        pass

    def stop(event: str, figures: dict[str, Any]) -> None:
        if event == "step.end" and (figures["epoch"], figures["step"]) == (3, 3):
            raise StopError

    first = Learner(Net(), lr=0.1, epochs=4, batch_size=20, observers=[stop])
    with pytest.raises(StopError):
        first.learn(blobs(2, per_class=100)[0])
    first.save(tmp_path)
    second = Learner.load(tmp_path, Net())
    assert first.position is not None
    assert second.position is not None
    assert second.position.learned is first.position.learned is True
    assert second.position.accuracy == first.position.accuracy > 0.5
