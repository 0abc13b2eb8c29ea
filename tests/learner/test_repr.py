"""What a stream, a task and a Learner look like in a notebook: three lines at most, no tensors."""

from __future__ import annotations

import pytest
from toys import blobs, make_learner

from sparcl.streams import Samples, Task, seq_digits


def test_three_lines_and_no_tensors() -> None:
    stream = seq_digits(limit_per_class=3)
    learner = make_learner()
    for thing in (stream, stream[0], stream[0].train, stream[0].test, learner, stream.merged(), stream.merged()[0]):
        assert repr(thing).count("\n") < 3
        assert len(repr(thing)) < 300
        assert "tensor" not in repr(thing)


def test_they_say_what_they_are() -> None:
    stream = blobs()
    assert (
        repr(stream)
        == f"<Stream blobs: 2 task(s), 4 classes, samples [2, 6, 6], fingerprint {stream.fingerprint[:12]}>"
    )
    assert repr(stream[1]) == "<Task 2: classes 2 to 3; 40 training and 40 test samples of float32 [2, 6, 6]>"
    assert repr(stream[1].train) == "<40 samples of float32 [2, 6, 6]>"
    bare = Task(0, tuple(range(0, 40, 2)), stream[0].train)
    assert repr(bare).startswith(
        "<Task 1: classes 0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 10 more; 40 training and 0 test"
    )


def test_a_learner_says_where_it_stands() -> None:
    seen: list[str] = []
    learner = make_learner()
    learner.observers.append(lambda event, _: seen.append(repr(learner)) if event == "step.end" else None)
    first, second = blobs()
    learner.learn(first)
    assert seen[0].splitlines()[2].strip() == "0 task(s) learned, inside task 1, 1 steps>"
    one, two, three = repr(learner).splitlines()
    weights = sum(p.numel() for p in learner.model.parameters())
    assert one == f"<Learner: Net of {weights:,} weights, method derpp, sparsifier sparcl,"
    assert two.strip() == "backend reference on cpu;"
    assert three.strip() == f"1 task(s) learned, {learner.steps} steps>"
    learner.learn(second)


@pytest.mark.parametrize("samples", [Samples([[1.0], [2.0]], [0, 1]), Samples(None, None), None])
def test_it_looks_at_ill_formed_samples_without_an_error(samples: Samples | None) -> None:
    assert repr(Task(0, (0, 1), samples)).startswith("<Task 1: classes 0 to 1; ")
    assert "object at" not in repr(samples)
