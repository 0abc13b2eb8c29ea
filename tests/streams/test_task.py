import torch

from sparcl.streams import Stream, seq_digits


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
