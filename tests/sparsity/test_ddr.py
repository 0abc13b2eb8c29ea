"""DDR: as many samples leave as planned, those learned best, for good."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import Net, blobs, own_loop

from sparcl.errors import ConfigError
from sparcl.sparsity import DDR


def attached(removed: float = 0.3, score: str = "misclassified", seed: int = 0) -> DDR:
    model = nn.Linear(2, 2)
    return DDR(removed, score=score).attach(model, torch.optim.SGD(model.parameters(), lr=0.1), seed)


def tell(ddr: DDR, ids: Tensor, wrong: Tensor) -> None:
    """The samples `ids` were predicted, wrongly where `wrong`; the label is 0 and there are two classes."""
    logits = torch.stack([(~wrong).float(), wrong.float()], dim=1)
    ddr.after_forward(ids, logits, torch.zeros(len(ids), dtype=torch.int64))


def test_the_published_schedule_removes_750_at_epochs_5_10_15_20_and_saves_3520_of_15600_iterations() -> None:
    ddr = attached()
    removals: list[tuple[int, int]] = []
    epoch = 0
    ddr.notify = lambda _, figures: removals.append((epoch, figures["removed"]))
    ddr.begin_task(0, samples=10_000, epochs=50)
    generator = torch.Generator().manual_seed(0)
    iterations = 0
    gone = torch.zeros(10_000, dtype=torch.bool)
    for epoch in range(50):
        order = ddr.keep(torch.randperm(10_000, generator=generator))
        ddr.begin_epoch(epoch, len(order) // 32)
        step = 0
        while 32 * step + 32 <= len(order):
            ddr.begin_step(step)
            if step == 0:
                assert not bool((gone & ddr.kept).any())  # the removed stay removed
                gone |= ~ddr.kept
                order = ddr.keep(order)
            ids = order[32 * step : 32 * step + 32]
            tell(ddr, ids, torch.rand(32, generator=generator) < 0.3)
            step += 1
        iterations += step
    assert removals == [(5, 750), (10, 750), (15, 750), (20, 750)]
    assert ddr.removed == int(gone.sum()) == 3000
    assert iterations == 12_080


@pytest.mark.parametrize("samples", [2, 3, 7, 33, 100, 1234])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.9])
def test_exactly_the_planned_number_leaves(samples: int, share: float) -> None:
    ddr = attached(share)
    ddr.begin_task(0, samples=samples, epochs=10)
    removed = []
    for epoch in range(10):
        ddr.begin_epoch(epoch, 1)
        ddr.begin_step(0)
        ids = ddr.keep(torch.arange(samples))
        removed.append(samples - len(ids))
        tell(ddr, ids, ids % 3 == 0)
    plan = [min(round(share * samples * min(epoch, 4) / 4), samples - 2) for epoch in range(10)]
    assert removed == plan  # at epochs 1, 2, 3 and 4 of 10; two samples always stay
    assert ddr.removed == removed[-1]
    ddr.begin_task(1, samples=5, epochs=10)
    assert ddr.removed == 0
    assert len(ddr.keep(torch.arange(5))) == 5


def test_the_least_misclassified_leave_and_counts_start_anew() -> None:
    ddr = attached(0.8)  # a fifth of the task at each moment
    ddr.begin_task(0, samples=10, epochs=10)
    everyone = torch.arange(10)
    for epoch, wrong in enumerate(([9, 8, 7, 6, 5, 4, 3, 2], [0, 1, 2, 3])):
        ddr.begin_epoch(epoch, 3)
        ddr.begin_step(0)
        for _ in range(3):
            ids = ddr.keep(everyone)
            tell(ddr, ids, torch.isin(ids, torch.tensor(wrong)))
    assert ddr.keep(everyone).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]  # 0 and 1 were never wrong
    ddr.begin_epoch(2, 3)
    ddr.begin_step(0)
    left = ddr.keep(everyone).tolist()
    assert len(left) == 6
    assert {2, 3} < set(left)  # wrong lately, though others were wrong longer ago


def test_mistakes_of_before_the_last_removal_are_forgotten() -> None:
    ddr = attached(0.8)
    ddr.begin_task(0, samples=10, epochs=10)
    for mistakes in range(3):  # 0 and 1 are never wrong, 2 and 3 once, the others three times
        tell(ddr, torch.arange(10), torch.arange(10) >= (2 if mistakes == 0 else 4))
    ddr.begin_epoch(1, 1)
    ddr.begin_step(0)
    ids = ddr.keep(torch.arange(10))
    assert ids.tolist() == list(range(2, 10))
    tell(ddr, ids, ids < 4)  # since then 2 and 3 are wrong once, the others never
    ddr.begin_epoch(2, 1)
    ddr.begin_step(0)
    assert {2, 3} < set(ddr.keep(ids).tolist())


def test_misclassifications_are_counted_not_only_noted() -> None:
    ddr = attached(0.8)
    ddr.begin_task(0, samples=5, epochs=10)
    for mistakes in range(5):  # sample k is wrong k times
        ids = torch.arange(5)
        tell(ddr, ids, ids > mistakes)
    ddr.begin_epoch(1, 1)
    ddr.begin_step(0)
    ddr.begin_epoch(2, 1)
    assert ddr.keep(torch.arange(5)).tolist() == [1, 2, 3, 4]


def left_of(score: str, history: list[list[int]], share: float = 0.5) -> list[int]:
    """Who is left of four samples, predicted wrongly where `history` is 1; all that leave go at the last moment."""
    ddr = attached(share, score)
    ddr.begin_task(0, samples=4, epochs=10)
    for wrong in history:
        tell(ddr, torch.arange(4), torch.tensor(wrong, dtype=torch.bool))
    ddr.begin_epoch(4, 1)
    ddr.begin_step(0)
    return ddr.keep(torch.arange(4)).tolist()


def test_forgetting_counts_changes_from_right_to_wrong_and_who_was_never_right_stays() -> None:
    # sample 0 is always wrong, 1 is forgotten once, 2 twice, 3 is always right
    history = [[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert left_of("forgetting", history) == [0, 2]  # the released code scores them 50, 1, 2 and 0
    assert left_of("misclassified", history)[0] == 0
    assert 3 not in left_of("misclassified", history)


def test_of_samples_that_were_never_right_none_leaves() -> None:
    assert left_of("forgetting", [[1, 1, 1, 1]] * 3) == [0, 1, 2, 3]
    assert left_of("forgetting", [[1, 1, 1, 0]] * 3) == [0, 1, 2]
    assert len(left_of("misclassified", [[1, 1, 1, 1]] * 3)) == 2


def test_forgetting_starts_anew_after_each_removal() -> None:
    """What was right before a removal and wrong ever since was not forgotten since: it was never right since."""
    ddr = attached(0.8, "forgetting")  # a fifth of the task at each moment
    ddr.begin_task(0, samples=10, epochs=10)
    everyone = torch.arange(10)
    for epoch, histories in enumerate(
        (
            [[0] * 10, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [0] * 10],  # 0 and 1 are never forgotten
            [[0, 0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]] * 2,  # 4 to 9 are forgotten twice
        )
    ):
        ddr.begin_epoch(epoch, 3)
        ddr.begin_step(0)
        for wrong in histories:
            ids = ddr.keep(everyone)
            tell(ddr, ids, torch.tensor(wrong, dtype=torch.bool)[ids])
    assert ddr.keep(everyone).tolist() == list(range(2, 10))
    ddr.begin_epoch(2, 3)
    ddr.begin_step(0)
    left = ddr.keep(everyone).tolist()
    assert len(left) == 6
    assert {2, 3} < set(left)  # always wrong since; were "right" of before still known, they would count once and leave


def test_samples_not_seen_since_the_last_removal_stay() -> None:
    ddr = attached(0.9)
    ddr.begin_task(0, samples=100, epochs=1)
    ddr.begin_epoch(0, 10)
    gone: list[int] = []
    for step in range(10):
        ddr.begin_step(step)
        gone.append(ddr.removed)
        ids = torch.arange(step * 10, step * 10 + 10)
        tell(ddr, ids, torch.zeros(10, dtype=torch.bool))
    assert gone == [0, 10, 20, 30, 40, 40, 40, 40, 40, 40]  # 22 are asked for, 10 are known
    assert ddr.keep(torch.arange(100)).tolist() == list(range(40, 100))


@pytest.mark.parametrize("score", ["misclassified", "forgetting"])
def test_what_was_seen_before_the_last_removal_only_is_no_candidate(score: str) -> None:
    ddr = attached(0.8, score)
    ddr.begin_task(0, samples=20, epochs=10)
    tell(ddr, torch.arange(20), torch.zeros(20, dtype=torch.bool))
    left = []
    for epoch in (1, 2):
        ddr.begin_epoch(epoch, 1)
        ddr.begin_step(0)
        left.append(len(ddr.keep(torch.arange(20))))
    assert left == [16, 16]  # nobody was seen between the two: nobody leaves at the second
    tell(ddr, ids := ddr.keep(torch.arange(20)), torch.zeros(len(ids), dtype=torch.bool))
    ddr.begin_epoch(3, 1)
    ddr.begin_step(0)
    assert len(ddr.keep(torch.arange(20))) == 8  # what is owed is made up for


def test_ties_are_decided_by_the_seed_not_by_the_order_of_the_data() -> None:
    def first_removed(seed: int) -> list[int]:
        ddr = attached(seed=seed)
        ddr.begin_task(0, samples=200, epochs=10)
        tell(ddr, torch.arange(200), torch.zeros(200, dtype=torch.bool))
        ddr.begin_epoch(1, 1)
        ddr.begin_step(0)
        return (~ddr.kept).nonzero().squeeze(1).tolist()

    assert first_removed(0) == first_removed(0) != first_removed(1)
    assert first_removed(0) != list(range(15))


def test_alone_in_a_loop_of_ones_own_later_epochs_are_shorter() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ddr = DDR(0.5).attach(model, optimizer)
    steps = own_loop(ddr, model, optimizer, blobs(per_class=50), epochs=10)
    # 100 samples of a task, 12 or 13 less at epochs 1, 2, 3 and 4
    kept = [100, 88, 75, 62, 50, 50, 50, 50, 50, 50]
    in_flight = [0, 1, 1, 1, 1, 0, 0, 0, 0, 0]  # the loop draws an epoch's order before its first step removes
    expected = sum(kept[e - 1] // 10 if late else kept[e] // 10 for e, late in enumerate(in_flight))
    assert steps == 2 * expected


def test_nothing_is_noted_once_nothing_can_leave_any_more() -> None:
    ddr = attached()
    ddr.begin_task(0, samples=8, epochs=10)
    for epoch in range(10):
        ddr.begin_epoch(epoch, 1)
        ddr.begin_step(0)
        tell(ddr, torch.arange(8), torch.zeros(8, dtype=torch.bool))
    assert ddr._pending == []


def test_interrupted_and_resumed_is_uninterrupted() -> None:
    def kept(interrupt: bool, score: str) -> list[bool]:
        ddr = attached(score=score, seed=3)
        ddr.begin_task(0, samples=60, epochs=5)
        generator = torch.Generator().manual_seed(0)
        for epoch in range(5):
            ddr.begin_epoch(epoch, 6)
            for step in range(6):
                if interrupt and (epoch, step) in {(0, 0), (1, 2), (2, 5)}:
                    state = copy.deepcopy(ddr.state_dict())
                    ddr = attached(score=score, seed=77)
                    ddr.load_state_dict(state)
                    ddr.resume_task(None)
                ddr.begin_step(step)
                tell(ddr, torch.arange(60), torch.rand(60, generator=generator) < 0.5)
        return ddr.kept.tolist()

    for score in ("misclassified", "forgetting"):
        assert kept(False, score) == kept(True, score)


def test_settings_out_of_range_are_refused_in_one_line() -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="use 0 to less than 1"):
            DDR(share)
    with pytest.raises(ConfigError, match="allowed: misclassified, forgetting"):
        DDR(score="loss")
