"""Metrics against matrices computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl.errors import ConfigError
from sparcl.learner.accuracy import Accuracy
from sparcl.main import _main
from sparcl.run.evaluate import AccuracyMatrix

TASK_IL = [(90.0, 50.0, 40.0), (80.0, 95.0, 55.0), (70.0, 91.0, 97.0)]
CLASS_IL = [(90.0, 0.0, 0.0), (30.0, 92.0, 0.0), (36.0, 10.0, 95.0)]
BASELINE = Accuracy(class_il=(10.0, 9.0, 8.0), task_il=(50.0, 48.0, 52.0))
BY_HAND = {
    "class_il": {
        "forgetting": ((90 - 36) + (92 - 10)) / 2,
        "backward_transfer": ((36 - 90) + (10 - 92)) / 2,
        "forward_transfer": ((0 - 9) + (0 - 8)) / 2,
    },
    "task_il": {
        "forgetting": ((90 - 70) + (95 - 91)) / 2,
        "backward_transfer": ((70 - 90) + (91 - 95)) / 2,
        "forward_transfer": ((50 - 48) + (55 - 52)) / 2,
    },
}
NOTHING = {"forgetting": None, "backward_transfer": None, "forward_transfer": None}


def filled(class_il: bool = True) -> AccuracyMatrix:
    matrix = AccuracyMatrix(3)
    matrix.set_baseline(BASELINE if class_il else Accuracy(None, BASELINE.task_il))
    for c, t in zip(CLASS_IL, TASK_IL, strict=True):
        matrix.add(Accuracy(c if class_il else None, t))
    return matrix


def test_metrics_by_hand() -> None:
    assert filled().metrics() == {
        "class_il": pytest.approx((36 + 10 + 95) / 3),
        "task_il": pytest.approx((70 + 91 + 97) / 3),
        **BY_HAND["class_il"],
        "transfer": BY_HAND,
    }


def test_forgetting_is_from_the_best_there_ever_was_and_backward_transfer_from_what_was_learned() -> None:
    """A task that got better after it was learned, and was then forgotten, tells the two apart."""
    matrix = AccuracyMatrix(3)
    for row in ((60.0, 0.0, 0.0), (80.0, 70.0, 0.0), (65.0, 75.0, 90.0)):
        matrix.add(Accuracy(row, row))
    metrics = matrix.metrics()
    assert metrics["forgetting"] == ((80 - 65) + (70 - 75)) / 2
    assert metrics["backward_transfer"] == ((65 - 60) + (75 - 70)) / 2
    assert metrics["forward_transfer"] is None  # the untrained network was never evaluated


def test_a_method_that_needs_the_task_identity_has_no_class_il() -> None:
    metrics = filled(class_il=False).metrics()
    assert metrics["class_il"] is None
    assert metrics["transfer"] == {"class_il": NOTHING, "task_il": BY_HAND["task_il"]}
    assert metrics["forgetting"] == BY_HAND["task_il"]["forgetting"]
    assert filled(class_il=False).rows()["class_il"] is None


def test_one_row_has_means_and_no_transfer() -> None:
    """Joint training sees all tasks at once; so does a stream of one task."""
    joint, single = AccuracyMatrix(3), AccuracyMatrix(1)
    joint.set_baseline(BASELINE)
    joint.add(Accuracy((60.0, 70.0, 80.0), (90.0, 91.0, 92.0)))
    single.set_baseline(Accuracy((50.0,), (50.0,)))
    single.add(Accuracy((60.0,), (90.0,)))
    for matrix, class_il, task_il in ((joint, 70.0, 91.0), (single, 60.0, 90.0)):
        expected = {"class_il": class_il, "task_il": task_il, **NOTHING}
        assert matrix.metrics() == {**expected, "transfer": {"class_il": NOTHING, "task_il": NOTHING}}


def test_before_the_first_task_nothing_is_known() -> None:
    metrics = AccuracyMatrix(2).metrics()
    assert metrics["class_il"] is metrics["task_il"] is metrics["forgetting"] is None


def test_rows_are_the_whole_matrix() -> None:
    rows = filled().rows()
    assert rows["class_il"] == [list(row) for row in CLASS_IL]
    assert rows["task_il"] == [list(row) for row in TASK_IL]
    assert rows["baseline"] == {"class_il": [10.0, 9.0, 8.0], "task_il": [50.0, 48.0, 52.0]}


@pytest.mark.parametrize("class_il", [True, False])
def test_each_class_by_hand_also_after_a_stop(class_il: bool) -> None:
    matrix, resumed = AccuracyMatrix(1), AccuracyMatrix(1)
    assert matrix.per_class(["a", "b", "c"]) is None
    matrix.add(Accuracy((50.0,) if class_il else None, (50.0,), ((3, 1, 0), (0, 0, 0), (2, 0, 2))))
    resumed.load_state_dict(json.loads(json.dumps(matrix.state_dict())))
    for one in (matrix, resumed):
        assert one.per_class(["a", "b", "c"]) == {
            "scenario": "class_il" if class_il else "task_il",
            "names": ["a", "b", "c"],
            "accuracy": [75.0, None, 50.0],
            "confusion": [[3, 1, 0], [0, 0, 0], [2, 0, 2]],
        }


@pytest.mark.parametrize("class_il", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_state_goes_through_json(class_il: bool, cut: int) -> None:
    whole, matrix = filled(class_il), AccuracyMatrix(3)
    matrix.set_baseline(BASELINE if class_il else Accuracy(None, BASELINE.task_il))
    rows = [Accuracy(c if class_il else None, t) for c, t in zip(CLASS_IL, TASK_IL, strict=True)]
    for row in rows[:cut]:
        matrix.add(row)
    resumed = AccuracyMatrix(3)
    assert not resumed.has_baseline
    resumed.load_state_dict(json.loads(json.dumps(matrix.state_dict())))
    assert resumed.has_baseline
    for row in rows[cut:]:
        resumed.add(row)
    assert resumed.rows() == whole.rows()
    assert resumed.metrics() == whole.metrics()


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="each of 3 tasks"):
        AccuracyMatrix(3).add(Accuracy((1.0,), (1.0,)))
    matrix = filled()
    with pytest.raises(ConfigError, match="all its 3 rows"):
        matrix.add(Accuracy(CLASS_IL[0], TASK_IL[0]))


percent = st.integers(0, 100).map(float)


@given(st.integers(2, 5).flatmap(lambda t: st.lists(st.tuples(*[percent] * t), min_size=t, max_size=t)))
def test_forgetting_is_at_least_the_loss_since_learning(rows: list[tuple[float, ...]]) -> None:
    """max over i < T includes i = j; where accuracies only ever fall after learning, the two are equal and opposite."""
    matrix = AccuracyMatrix(len(rows))
    for row in rows:
        matrix.add(Accuracy(None, row))
    metrics = matrix.metrics()
    assert metrics["forgetting"] >= -metrics["backward_transfer"] - 1e-9
    peaks_when_learned = all(row[j] >= other[j] for j, row in enumerate(rows[:-1]) for other in rows[:-1])
    if peaks_when_learned:
        assert metrics["forgetting"] == pytest.approx(-metrics["backward_transfer"])


def test_a_method_without_an_answer_for_classes_to_come_has_no_forward_transfer() -> None:
    matrix = AccuracyMatrix(3, answers_unseen=False)
    matrix.set_baseline(BASELINE)
    for c, t in zip(CLASS_IL, TASK_IL, strict=True):
        matrix.add(Accuracy(c, t))
    expected = {scenario: {**by_hand, "forward_transfer": None} for scenario, by_hand in BY_HAND.items()}
    assert matrix.metrics()["transfer"] == expected
    assert matrix.metrics()["forward_transfer"] is None
    assert matrix.metrics()["backward_transfer"] == BY_HAND["class_il"]["backward_transfer"]


@pytest.mark.parametrize(("method", "has_one"), [("icarl", False), ("er", True), ("packnet", True)])
def test_forward_transfer_of_a_run_is_null_for_icarl_alone(tmp_path: Path, method: str, has_one: bool) -> None:
    size = [] if method == "packnet" else ["--buffer-size", "20"]
    sparsifier = [*size, "--sparsifier", "dense", "--backend", "reference", "--out", str(tmp_path / "run")]
    short = ["--limit-per-class", "8", "--epochs", "1", "--width", "4", "--batch-size", "8"]
    assert _main(["run", "seq-digits", "--method", method, *short, *sparsifier]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["forward_transfer"] is not None) == has_one
    assert (result["transfer"]["task_il"]["forward_transfer"] is not None) == has_one
    assert result["backward_transfer"] is not None
