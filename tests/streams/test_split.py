import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl.errors import ConfigError, DataError
from sparcl.streams import Transform, from_arrays
from sparcl.streams.split import Arrays, split


def data(n_classes=6, per_class=5, shape=(1, 4, 4)):
    """Shuffled samples, each filled with its original label times ten plus its number within the class."""
    labels = np.tile(np.arange(n_classes), per_class)
    number = np.repeat(np.arange(per_class), n_classes)
    inputs = np.broadcast_to((labels * 10 + number).reshape(-1, *[1] * len(shape)), (len(labels), *shape))
    return inputs.astype(np.uint8), labels


def stream_of(n_classes=6, train=5, test=3, **options):
    return from_arrays(*data(n_classes, train), *data(n_classes, test), **options)


def test_class_names_are_one_for_each_class_in_any_list():
    x, y = data(3, 2)
    for names in (["a", "b", "c"], np.array(["a", "b", "c"]), ("a", "b", "c")):
        assert from_arrays(x, y, classes_per_task=3, class_names=names).class_names == ("a", "b", "c")
    for names in (["a", "a", "b"], "abc", [], [1, "1", 2]):
        with pytest.raises(DataError, match="a list of names is needed, one for each class"):
            from_arrays(x, y, classes_per_task=3, class_names=names)


def test_tasks_hold_their_classes_in_natural_order():
    stream = stream_of(classes_per_task=2)
    assert len(stream) == 3
    assert (stream.n_classes, stream.input_shape) == (6, (1, 4, 4))
    assert stream.class_names == ("0", "1", "2", "3", "4", "5")
    for t, task in enumerate(stream):
        assert (task.index, task.classes) == (t, (2 * t, 2 * t + 1))
        for samples, per_class in ((task.train, 5), (task.test, 3)):
            assert len(samples) == 2 * per_class
            assert samples.inputs.dtype == torch.uint8
            assert samples.labels.dtype == torch.int64
            assert torch.equal(samples.inputs[:, 0, 0, 0] // 10, samples.labels)
            assert torch.bincount(samples.labels, minlength=6)[list(task.classes)].tolist() == [per_class] * 2


@given(n_classes=st.integers(1, 12), cut=st.integers(1, 12), seed=st.none() | st.integers(0, 2**40))
def test_each_class_becomes_one_column_whatever_the_order(n_classes, cut, seed):
    classes_per_task = next(k for k in range(min(cut, n_classes), 0, -1) if n_classes % k == 0)
    stream = stream_of(n_classes, classes_per_task=classes_per_task, class_order_seed=seed)
    assert sorted(map(int, stream.class_names)) == list(range(n_classes))
    assert [k for task in stream for k in task.classes] == list(range(n_classes))
    original = torch.tensor([int(name) for name in stream.class_names])
    for task in stream:
        assert torch.equal(task.train.inputs[:, 0, 0, 0] // 10, original[task.train.labels].to(torch.uint8))
        assert set(task.train.labels.tolist()) == set(task.test.labels.tolist()) == set(task.classes)


def test_order_obeys_its_seed():
    first, same, other, natural = (stream_of(10, class_order_seed=s) for s in (1, 1, 2, None))
    assert first.class_names == same.class_names != other.class_names
    assert natural.class_names == tuple("0123456789")
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_limit_keeps_the_first_of_each_class():
    stream = stream_of(limit_per_class=2, class_order_seed=3)
    for task in stream:
        for samples in (task.train, task.test):
            assert sorted((samples.inputs[:, 0, 0, 0] % 10).tolist()) == [0, 0, 1, 1]
            assert torch.bincount(samples.labels)[list(task.classes)].tolist() == [2, 2]


def test_fingerprint_sees_every_pixel_and_label():
    train_x, train_y = data()
    reference = from_arrays(train_x, train_y, train_x, train_y).fingerprint
    assert from_arrays(train_x.copy(), train_y, train_x, train_y).fingerprint == reference
    pixel, label = train_x.copy(), train_y.copy()
    pixel[-1, 0, 3, 3] += 1
    label[[0, 1]] = label[[1, 0]]
    assert from_arrays(pixel, train_y, train_x, train_y).fingerprint != reference
    assert from_arrays(train_x, train_y, pixel, train_y).fingerprint != reference
    assert from_arrays(train_x, label, train_x, train_y).fingerprint != reference


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda a: a[::-1][::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),  # read-only
    ],
)
def test_arrays_of_any_layout_and_tensors_give_the_same_stream(convert):
    x, y = data()
    x = x.astype(np.float64) / 7
    stream = from_arrays(convert(x), convert(y), convert(x), convert(y), classes_per_task=3)
    reference = from_arrays(x, y, x, y, classes_per_task=3)
    assert stream[0].train.inputs.dtype == torch.float32
    assert stream.fingerprint == reference.fingerprint


def test_the_users_arrays_are_not_shared():
    x, y = (torch.from_numpy(a) for a in data())
    stream = from_arrays(x, y, x, y, classes_per_task=6)
    before = stream[0].train.inputs.clone()
    x.fill_(0)
    assert torch.equal(stream[0].train.inputs, before)


def test_what_is_read_from_files_in_class_order_is_held_once():
    inputs, labels = (np.sort(a, axis=0) for a in data())
    arrays = Arrays(inputs, labels, inputs, labels, tuple("abcdef"))
    options = {"classes_per_task": 3, "class_order_seed": None}
    shared = split("x", arrays, Transform(), limit_per_class=None, **options)
    base = inputs.__array_interface__["data"][0]
    assert [task.train.inputs.data_ptr() - base for task in shared] == [0, inputs.nbytes // 2]
    assert shared.fingerprint == from_arrays(inputs, labels, inputs, labels, classes_per_task=3).fingerprint
    limited = split("x", arrays, Transform(), limit_per_class=2, **options)
    assert limited[1].train.inputs[:, 0, 0, 0].tolist() == [30, 31, 40, 41, 50, 51]


def test_own_names_and_transform_are_kept():
    transform = Transform(crop_padding=1)
    stream = from_arrays(*data(2), *data(2), class_names=["cat", "dog"], transform=transform, name="pets")
    assert (stream.name, stream.class_names) == ("pets", ("cat", "dog"))
    assert stream[0].transform is transform


def changed(part, change):
    arrays = [*data(), *data()]
    arrays[part] = change(arrays[part])
    return arrays


def with_value(index, value):
    def change(array):
        array = array.astype(np.result_type(array, type(value)))
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (0, lambda a: a[:-1], "29 training inputs but 30 training labels"),
        (2, lambda a: a[:, :, :3], "they must agree"),
        (2, lambda a: a.astype(np.float32), "they must agree"),
        (0, with_value((7, 0, 0, 0), np.nan), "training inputs hold NaN or infinite values, the first in sample 7"),
        (2, with_value((0, 0, 1, 0), np.inf), "test inputs hold NaN"),
        (0, lambda a: a.astype(np.float64) * 1e300, "infinite"),
        (0, lambda a: a.astype(np.complex64), "complex64: allowed are uint8, other integers and floating point"),
        (0, lambda a: a.astype(object), "object: allowed are uint8, other integers and floating point"),
        (0, lambda a: a[:0], "non-empty"),
        (0, lambda a: a[:, 0, 0, 0], "non-empty"),
        (1, with_value(3, -1), "class '-1' has no test samples: every class needs at least one$"),
        (3, with_value(3, 6), "test label 6 of sample 3 is out of range: allowed are 0 to 5"),
        (1, with_value(3, 2**40), "class '1099511627776' has no test samples"),
        (1, lambda a: np.where(a == 2, 3, a), "test label 2 of sample 2 is no class: allowed are 0, 1, 3, 4, 5$"),
        (3, lambda a: np.where(a == 2, 3, a), "class '2' has no test samples: every class needs at least one$"),
        (1, lambda a: a + 1, "test label 0 of sample 0 is no class: allowed are 1, 2, 3, 4, 5, 6$"),
        (1, lambda a: a.astype(np.float32), "integers of shape"),
        (1, lambda a: a.astype(bool), "integers of shape"),
        (1, lambda a: a[:, None], "integers of shape"),
        (1, lambda a: a[:0], "no training labels"),
        (3, lambda a: a[:0], "no test labels"),
        (1, lambda a: a.astype(str), "test label 0 of sample 0 is no class: allowed are 0, 1, 2, 3, 4, 5$"),
        (0, lambda _: [[1.0, 2.0], [3.0]], "training inputs are not a rectangular array"),
        (3, lambda _: [[1], 2], "test labels are not a rectangular array"),
    ],
)
def test_bad_data_is_refused_in_one_line(part, change, message):
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(*changed(part, change))
    assert "\n" not in str(caught.value)


def test_tasks_of_unequal_size_are_refused_with_the_divisors():
    with pytest.raises(
        DataError, match="6 classes do not split into tasks of 4: allowed are 1, 2, 3, 6, and a list that adds up to 6"
    ):
        stream_of(classes_per_task=4)
    with pytest.raises(DataError, match="allowed are 1, 2, 3, 6"):
        stream_of(classes_per_task=0)


def test_a_task_may_have_one_sample():
    assert [len(task.train) for task in stream_of(train=1, classes_per_task=1)] == [1] * 6


@pytest.mark.parametrize("options", [{"limit_per_class": 0}, {"class_order_seed": -1}, {"class_order_seed": 2**63}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=r"it must be|allowed are"):
        stream_of(**options)


def test_a_transform_that_does_not_fit_is_refused_with_the_data():
    with pytest.raises(ConfigError, match="crop and flip are for images"):
        from_arrays(*data(shape=(4,)), *data(shape=(4,)), transform=Transform(crop_padding=2))


def test_whole_numbers_that_float32_would_make_equal_are_refused() -> None:
    inputs, labels = np.arange(24, dtype=np.int64).reshape(8, 3), [0, 1] * 4
    assert from_arrays(inputs + 2**23, labels)[0].train.inputs[1, 2] == 2**23 + 5
    for far in (2**40, -(2**40)):
        with pytest.raises(
            DataError, match=r"training inputs hold whole numbers up to 1\.09951e\+12, .*below 16,777,216"
        ):
            from_arrays(inputs + far, labels)


def test_labels_beyond_what_is_counted_with_are_refused() -> None:
    far = np.array([2**63 + 5, 1], dtype=np.uint64)
    for labels in (far, torch.from_numpy(far)):
        with pytest.raises(DataError, match=r"training labels hold numbers of 2\^63 and more"):
            from_arrays(np.zeros((2, 3)), labels)
    assert from_arrays(np.zeros((2, 3)), np.array([7, 1], dtype=np.uint64)).n_classes == 2
