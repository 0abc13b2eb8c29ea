import contextlib
import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_data import write_folder

from sparcl.errors import DataError
from sparcl.streams import seq_fashion_mnist, seq_mnist
from sparcl.streams.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_files(suffix="", dotted=False, per_class=4, side=28):
    files = {}
    for split, offset in (("train", 0), ("t10k", 100)):
        labels = np.tile(np.arange(10), per_class)
        images = np.broadcast_to((labels + offset)[:, None, None], (len(labels), side, side))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte{suffix}"
            content = gzip.compress(idx(array)) if suffix else idx(array)
            files[name.replace("-idx", ".idx") if dotted else name] = content
    return files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
def test_mnist_in_every_official_spelling(tmp_path, suffix, dotted, below):
    write_folder(tmp_path / below, mnist_files(suffix, dotted))
    stream = seq_mnist(tmp_path)
    assert (len(stream), stream.input_shape, stream.name) == (5, (1, 28, 28), "seq-mnist")
    for task in stream:
        assert torch.equal(task.train.inputs[:, 0, 5, 5].long(), task.train.labels)
        assert torch.equal(task.test.inputs[:, 0, 5, 5].long(), task.test.labels + 100)


def test_the_two_data_sets_share_a_folder_by_subfolders(tmp_path):
    write_folder(tmp_path / "mnist", mnist_files(per_class=2))
    write_folder(tmp_path / "fashion-mnist", mnist_files(per_class=3))
    assert len(seq_mnist(tmp_path)[0].train) == 4
    stream = seq_fashion_mnist(tmp_path)
    assert len(stream[0].train) == 6
    assert stream.class_names[-1] == "Ankle boot"


def test_missing_files_are_named_with_their_place(tmp_path):
    files = mnist_files()
    del files["t10k-labels-idx1-ubyte"]
    write_folder(tmp_path, files)
    with pytest.raises(DataError, match=r"put t10k-labels-idx1-ubyte\.gz into") as caught:
        seq_mnist(tmp_path)
    assert "train-images" not in str(caught.value)
    with pytest.raises(DataError, match="is a file: the folder"):
        seq_mnist(tmp_path / "t10k-images-idx3-ubyte")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", idx(np.arange(39) % 10), "40 training inputs but 39 training labels"),
        ("train-labels-idx1-ubyte", idx(np.full(40, 11)), "label 11 of sample 0 is out of range: allowed are 0 to 9"),
        ("train-images-idx3-ubyte", idx(np.zeros(40)), "has 1 dimensions: images need 3"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((40, 20, 20))), "they must agree"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, name, content, message):
    write_folder(tmp_path, mnist_files() | {name: content})
    with pytest.raises(DataError, match=message):
        seq_mnist(tmp_path)


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4)), packed=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_array_is_read_back(tmp_path, array, packed):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(path), array)


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "no IDX file"),
        (b"\0\0\x0d\1" + struct.pack(">If", 1, 0.5), "no IDX file of unsigned bytes"),
        (b"\0\0\x08\0", "no IDX file"),
        (b"\0\0\x08\xff", "no IDX file"),
        (b"\0\0\x08\3\0\0\0\1", "truncated: its header needs 16 bytes"),
        (b"\0\0\x08\1" + struct.pack(">I", 0), "allowed are 1 to"),
        (b"\0\0\x08\3" + b"\xff" * 12, "allowed are 1 to"),
        (b"\0\0\x08\2" + struct.pack(">II", 2**15, 2**15) + b"abc", "1073741824 bytes, but holds 3"),
        (GOOD[:-1], "24 bytes, but holds 23"),
        (GOOD + b"x", "24 bytes, but holds more than 24"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_lies_is_refused_before_it_is_believed(tmp_path, content, message, packed):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


@given(cut=st.integers(3, 60), at=st.integers(0, 60), value=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_gzip_never_gives_wrong_numbers(tmp_path, cut, at, value):
    whole = gzip.compress(idx(np.arange(250)), mtime=0)
    path = tmp_path / "file.gz"
    path.write_bytes(whole[:-cut])
    with pytest.raises(DataError):
        read_idx(path)
    damaged = bytearray(whole)
    damaged[at] ^= value
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):
        assert np.array_equal(read_idx(path), np.arange(250))  # flags and times of the gzip header do not matter


@given(content=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with contextlib.suppress(DataError):  # no other error gets out
        assert idx(read_idx(path)) == content
