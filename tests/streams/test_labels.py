"""Labels of every kind, an order of the classes by name, and tasks of unequal size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparcl.errors import ConfigError, DataError
from sparcl.streams import STREAMS, from_arrays, load, make_task, seq_digits
from sparcl.streams.labels import cut


def stream_of(labels: Any, **options: Any) -> Any:
    """A stream whose every input is the number of its sample; the test data are the training data."""
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    return from_arrays(x, labels, x, labels, **options)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["dog", "cat", "dog", "cow"], ["dog", "cat", "cow"]),  # strings in order of arrival
        (np.array(["dog", "cat", "dog", "cow"]), ["dog", "cat", "cow"]),
        (np.array(["dog", "cat", "dog", "cow"], dtype=object), ["dog", "cat", "cow"]),
        ([3, 1, 2, 1], [1, 2, 3]),  # numbers from 1: in their own order
        (torch.tensor([70, -4, 12, 70]), [-4, 12, 70]),
        (np.array([9, 0, 4, 9], dtype=np.uint16), [0, 4, 9]),
        ([2, 0, 1, 2], [0, 1, 2]),
        (["a", 5, "a", 7], ["a", 5, 7]),
        (list(np.array(["b", "a"])), ["b", "a"]),
    ],
)
def test_every_label_gets_a_column_and_keeps_its_name(labels: Any, names: list[Any]) -> None:
    stream = stream_of(labels, classes_per_task=1)
    assert stream.class_names == tuple(map(str, names))
    plain = labels.tolist() if hasattr(labels, "tolist") else labels
    for task in stream:
        assert task.column_names == tuple(names)
        assert {type(name) for name in task.column_names} <= {str, int}
        for samples in (task.train, task.test):
            assert [plain[int(i)] for i in samples.inputs[:, 0]] == [names[k] for k in samples.labels]


def test_labels_from_0_are_the_columns_whatever_their_order_of_arrival() -> None:
    stream = stream_of([3, 1, 0, 2], classes_per_task=2)
    assert [task.train.labels.tolist() for task in stream] == [[1, 0], [3, 2]]


def test_class_names_say_the_order_of_strings() -> None:
    assert stream_of(["b", "a", "b"], class_names=["a", "b"]).tasks[0].train.labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="training label 'c' of sample 2 is no class: allowed are a, b"):
        stream_of(["b", "a", "c"], class_names=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.5, 2.0, 1.0], "integers of shape"),
        ([[1, 0], [0, 1]], "integers of shape"),
        ([1, "1", 2], "there is a class 1 and a class '1'"),
        (["a", None], "None is a NoneType"),
    ],
)
def test_what_is_no_label_is_refused_in_one_line(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        stream_of(labels, classes_per_task=1)
    assert "\n" not in str(caught.value)


def test_no_labels_are_refused() -> None:
    x, none = np.zeros((2, 2), np.float32), np.array([], dtype=str)
    with pytest.raises(DataError, match="there are no training labels"):
        from_arrays(x, none)
    with pytest.raises(DataError, match="there are no test labels"):
        from_arrays(x, ["a", "b"], x, none)
    with pytest.raises(DataError, match="there are no test inputs: give inputs and labels, or a Dataset"):
        from_arrays(x, ["a", "b"], None, ["a", "b"])


def test_a_test_label_that_was_never_trained_on_is_refused() -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(DataError, match=r"test label 'fox' of sample 1 is no class: allowed are cat, dog$"):
        from_arrays(x, ["cat", "dog", "cat"], x, ["dog", "fox", "dog"])


# --- the order, and tasks of unequal size -----------------------------------------------------------------------------


def test_classes_come_in_the_order_that_is_named() -> None:
    stream = stream_of([1, 4, 9, 4], classes_per_task=1, class_order=[9, 1, 4])
    assert stream.class_names == ("9", "1", "4")
    assert [task.train.inputs[:, 0].tolist() for task in stream] == [[2.0], [0.0], [1.0, 3.0]]
    assert stream.fingerprint == stream_of([1, 4, 9, 4], classes_per_task=1, class_order=["9", "1", "4"]).fingerprint


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["cat", "dog"], "leaves out 'cow'; each of the 3 classes is to be named once: cat, dog, cow"),
        (["cat", "dog", "cow", "cat"], "names 'cat' twice"),
        (["cat", "dog", "ox"], "names 'ox', which is no class; .*: cat, dog, cow"),
        ("cat", "leaves out 'dog'"),
    ],
)
def test_an_order_that_is_none_is_refused(order: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream_of(["cat", "dog", "cow"], classes_per_task=1, class_order=order)
    with pytest.raises(ConfigError, match="both given"):
        stream_of([0, 1], class_order=[1, 0], class_order_seed=1)


def test_tasks_may_have_unequal_numbers_of_classes() -> None:
    stream = stream_of(list(range(10)) * 2, classes_per_task=[4, 3, 3])
    assert [task.classes for task in stream] == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert [sorted(set(task.train.labels.tolist())) for task in stream] == [list(task.classes) for task in stream]
    assert stream_of(list(range(4)), classes_per_task=(2, 2)).fingerprint == stream_of(list(range(4))).fingerprint


@pytest.mark.parametrize("sizes", [[4, 3], [4, 3, 4], [10, 0], [11, -1], [], [5.0, 5.0], [True, 9], "55", [2, 8, "x"]])
def test_sizes_that_do_not_add_up_are_refused(sizes: Any) -> None:
    with pytest.raises(DataError, match=r"10 classes do not split into tasks of .*add up to 10 are needed"):
        cut(10, sizes)


def test_every_named_stream_takes_both() -> None:
    pytest.importorskip("sklearn")
    stream = load(
        "seq-digits", classes_per_task=[4, 3, 3], class_order=[str(k) for k in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    )
    assert [len(task.classes) for task in stream] == [4, 3, 3]
    assert stream.class_names[0] == "9"
    usual = seq_digits(classes_per_task=10)
    assert torch.equal((stream[0].train.labels == 0).sum(), (usual[0].train.labels == 9).sum())
    for entry in STREAMS.values():
        names = entry.open.__annotations__
        assert {"class_order", "classes_per_task"} <= names.keys()


def test_a_task_of_strings_has_its_names_in_order_of_arrival() -> None:
    task = make_task(np.zeros((3, 2), np.float32), ["dog", 3, "dog"])
    assert task.names == ("dog", 3)
    with pytest.raises(DataError, match="there are no training labels: give"):
        make_task(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, 0], dtype=torch.bfloat16),
        torch.tensor([0, 1, 0]).to_sparse(),
        torch.tensor([0, 1, 0]).to("meta"),
    ],
)
def test_labels_in_a_tensor_that_numpy_does_not_know_are_refused(labels: torch.Tensor) -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(DataError, match=r"training labels are a tensor that cannot be read .*is needed"):
        make_task(x, labels)
    with pytest.raises(DataError, match="test labels are a tensor that cannot be read"):
        from_arrays(x, ["a", "b", "a"], x, labels)


def test_an_order_that_is_no_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="class order is 5, no list; each of the 4 classes is to be named once"):
        stream_of(list(range(4)), class_order=5)
