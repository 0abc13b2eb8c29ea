from pathlib import Path

import pytest
from made_data import tree, write_folder

from sparcl import streams
from sparcl.errors import ConfigError, DataError


def test_the_registry_holds_the_named_streams():
    assert list(streams.STREAMS) == [
        "seq-digits",
        "seq-mnist",
        "seq-fashion-mnist",
        "seq-cifar10",
        "seq-cifar100",
        "seq-tinyimg",
        "folder",
    ]
    assert all(entry.open is getattr(streams, name.replace("-", "_")) for name, entry in streams.STREAMS.items())


def test_an_unknown_name_lists_what_is_allowed():
    with pytest.raises(ConfigError, match=f"allowed: {', '.join(streams.STREAMS)}"):
        streams.load("seq-cifar11")


def test_options_reach_the_stream():
    stream = streams.load("seq-digits", classes_per_task=5, class_order_seed=1, limit_per_class=4)
    assert [(len(t.train), len(t.test)) for t in stream] == [(20, 20), (20, 20)]
    assert stream.class_names != tuple("0123456789")


def test_resize_is_only_for_folders(tmp_path):
    with pytest.raises(ConfigError, match="only folder"):
        streams.load("seq-cifar10", tmp_path, resize=16)
    write_folder(tmp_path, tree())
    assert streams.load("folder", tmp_path, resize=16).input_shape == (3, 16, 16)


def test_without_data_the_folder_data_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into data by hand"):
        streams.load("seq-cifar10")
    assert not Path("data").exists()


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        streams.load("seq-cifar10", tmp_path)
