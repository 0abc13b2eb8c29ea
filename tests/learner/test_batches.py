"""An epoch's last partial batch: trained on or left out, as each source has it."""

from __future__ import annotations

from typing import Any

import pytest
from toys import Net, blobs

from sparcl import DDR, Learner, SparCL
from sparcl.sparsity import Sparsifier, Static
from sparcl.streams.batches import last, steps


def sizes(batch_size: int, **options: Any) -> list[int]:
    """Samples of each step of two epochs over a task of 40."""
    learner = Learner(Net(), epochs=2, batch_size=batch_size, backend="reference", lr=0.01, **options)
    seen: list[int] = []
    planned: list[int] = []

    def look(event: str, figures: dict[str, Any]) -> None:
        if event == "step.end":
            seen.append(figures["samples"])
            planned.append(figures["steps"])

    learner.observers.append(look)
    learner.learn(blobs()[0])
    if learner.sparsifier.removed == 0:
        assert planned == [len(seen) // 2] * len(seen)
    return seen


@pytest.mark.parametrize("drop_last", [None, False, True])
@pytest.mark.parametrize(
    "sparsifier", [Sparsifier, lambda: Static(0.5), lambda: SparCL(0.5, samples=0.0), lambda: DDR(0.0)]
)
def test_hosts_train_on_the_last_batch_and_sparsifiers_leave_it_out(sparsifier: Any, drop_last: bool | None) -> None:
    made = sparsifier()
    dropped = drop_last if drop_last is not None else type(made) is not Sparsifier
    assert sizes(12, sparsifier=made, drop_last=drop_last) == ([12, 12, 12] if dropped else [12, 12, 12, 4]) * 2


def test_a_last_batch_of_one_sample_has_no_batch_statistics() -> None:
    assert sizes(13, drop_last=False) == [13, 13, 13] * 2
    assert sizes(19, drop_last=False) == [19, 19, 2] * 2
    assert sizes(64, drop_last=False) == sizes(64, drop_last=True) == [40, 40]


def test_steps_of_an_epoch() -> None:
    assert steps(10_000, 32, True) == (312, 32, 32)
    assert steps(10_000, 32, False) == (313, 32, 16)
    assert steps(33, 32, False) == (1, 32, 32)
    assert steps(20, 32, False) == steps(20, 32, True) == (1, 20, 20)
    assert [last(n, 4, False) for n in range(6)] == [0, 0, 2, 3, 4, 4]
    assert [last(n, 4, True) for n in range(6)] == [0, 0, 0, 0, 4, 4]


def test_samples_that_leave_make_the_last_batch_smaller() -> None:
    seen = sizes(12, sparsifier=DDR(0.3), drop_last=False)
    assert sum(seen[:4]) <= 40
    assert all(2 <= n <= 12 for n in seen)
