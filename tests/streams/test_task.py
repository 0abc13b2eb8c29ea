import pytest
import torch

from sparcl.errors import ConfigError
from sparcl.streams import Stream, from_arrays, seq_digits


def test_a_stream_is_a_sequence_of_tasks():
    stream = seq_digits(limit_per_class=3)
    assert [task.index for task in stream] == [0, 1, 2, 3, 4]
    assert stream[-1] is stream.tasks[4]
    assert stream[1:3] == stream.tasks[1:3]
    assert list(reversed(stream)) == list(stream.tasks[::-1])


def test_merged_is_one_task_with_every_sample_once():
    stream = seq_digits(class_order_seed=1, limit_per_class=4)
    merged = stream.merged()
    (task,) = merged
    assert isinstance(merged, Stream)
    assert task.classes == tuple(range(10))
    assert torch.bincount(task.train.labels).tolist() == torch.bincount(task.test.labels).tolist() == [4] * 10
    assert torch.equal(task.train.inputs, torch.cat([t.train.inputs for t in stream]))
    assert (merged.fingerprint, merged.class_names) == (stream.fingerprint, stream.class_names)


def test_a_limited_test_split_keeps_the_first_of_each_class_and_another_fingerprint() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1])
    stream = from_arrays(torch.rand(6, 3), labels, torch.arange(6.0).view(6, 1).expand(6, 3), labels)
    limited = stream.limit_test(2)
    assert limited[0].test.inputs[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert limited[0].test.labels.tolist() == [1, 0, 0, 1]
    assert len(limited[0].train) == 6
    assert limited.fingerprint != stream.fingerprint
    for number in (0, -2, "3", 1.5):
        with pytest.raises(ConfigError, match="a whole number of 1 or more is needed"):
            stream.limit_test(number)
