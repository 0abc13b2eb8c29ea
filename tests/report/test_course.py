"""The loss over training: a line in each task, none from one task to the next."""

from __future__ import annotations

import re

from sparcl.report.course import MOST_POINTS, Course
from sparcl.report.svg import Series, plot


def path_of(series: Series) -> str:
    drawn = plot([series], "loss", "steps", "loss")
    assert drawn is not None
    return "".join(re.findall(r'<path class="line" d="([^"]*)"/>', drawn))


def test_the_loss_has_a_gap_where_a_task_begins() -> None:
    found = Course(starts=[0, 20, 40], end=60)
    found.epoch_loss = [(10.0, 3.0), (20.0, 2.0), (30.0, 9.0), (40.0, 8.0), (50.0, 7.0), (60.0, 6.0)]
    gap = (None, None)  # the loss at step 20 is the first task's, which ended there
    assert found.loss == [(10, 3), (20, 2), gap, (30, 9), (40, 8), gap, (50, 7), (60, 6)]
    path = path_of(Series("loss", found.loss))
    assert re.sub(r"[\d. ]+", "", path) == "MLMLML"


def test_thinning_keeps_the_gaps() -> None:
    found = Course(starts=[0, 5000], end=10_000)
    found.step_loss = [(float(step), 1.0) for step in range(1, 10_001)]
    assert found.loss.count((None, None)) == 1
    assert len(found.loss) <= MOST_POINTS + 2


def test_without_events_of_tasks_it_is_one_line() -> None:
    found = Course(epoch_loss=[(1.0, 3.0), (2.0, 2.0)])
    assert found.loss == [(1.0, 3.0), (2.0, 2.0)]
    assert Course().loss == []
    assert found.in_tasks([(1.0, 50.0)]) == found.in_tasks([]) == []
    assert Course(starts=[0, 2], end=4).in_tasks([(1.0, 50.0)]) == [(0.5, 50.0), (2.0, 50.0)]


def test_a_point_alone_between_gaps_is_marked_and_steps_break_as_well() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (None, None), (2.0, 3.0), (3.0, float("nan")), (4.0, 1.0), (5.0, 1.0)]
    drawn = plot([Series("loss", points, marks=False)], "loss", "steps", "loss")
    assert drawn is not None
    assert drawn.count('class="mark"') == 1
    assert re.sub(r"[\d. ]+", "", path_of(Series("loss", points, marks=False))) == "MLML"
    assert re.sub(r"[\d. ]+", "", path_of(Series("loss", points, marks=False, steps=True))) == "MHVMHV"


def test_a_task_of_one_epoch_each_has_marks_and_no_line() -> None:
    found = Course(starts=[0, 2, 4], end=6, epoch_loss=[(2.0, 3.0), (4.0, 2.0), (6.0, 1.0)])
    drawn = plot([Series("loss", found.loss, marks=False)], "loss", "steps", "loss")
    assert drawn is not None
    assert drawn.count('class="mark"') == 3
    assert "<path" not in drawn
