import os
from pathlib import Path

import numpy as np
import pytest
from made_data import tree, write_folder, write_tar

from sparcl.errors import DataError
from sparcl.folders import cache_folder
from sparcl.streams import folder
from sparcl.streams.cache import cached
from sparcl.streams.split import Arrays

ARRAYS = Arrays(
    np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4),
    np.array([0, 1]),
    np.zeros((1, 1, 3, 4), dtype=np.uint8),
    np.array([1]),
    ("ä", "b" * 40),
)


class Decoder:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


@pytest.fixture
def source(tmp_path):
    return write_tar(tmp_path / "data.tgz", {"x": b"y"})


def same(a, b):
    return a.class_names == b.class_names and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("train_inputs", "train_labels", "test_inputs", "test_labels")
    )


def test_decoded_once_and_read_back(source, cache):
    decode = Decoder()
    for _ in range(3):
        assert same(cached("kind", source, (), decode), ARRAYS)
    assert decode.calls == 1
    assert [p.suffix for p in cache.iterdir()] == [".npz"]


def test_another_kind_or_a_changed_source_is_decoded_anew(source):
    decode = Decoder()
    cached("kind", source, (), decode)
    cached("other", source, (), decode)
    assert decode.calls == 2
    os.utime(source, ns=(0, 12345))
    cached("kind", source, (), decode)
    assert decode.calls == 3
    source.write_bytes(b"longer than before" * 100)
    cached("kind", source, (), decode)
    assert decode.calls == 4


def test_a_folder_is_known_by_its_files(tmp_path):
    write_folder(tmp_path, tree())
    decode = Decoder()
    for calls in (1, 1):
        cached("kind", tmp_path, ("train", "test"), decode)
        assert decode.calls == calls
    (tmp_path / "elsewhere.txt").write_text("not read")
    cached("kind", tmp_path, ("train", "test"), decode)
    assert decode.calls == 1
    (tmp_path / "test" / "c000" / "new.png").write_bytes(b"")
    cached("kind", tmp_path, ("train", "test"), decode)
    assert decode.calls == 2


def test_a_link_to_nowhere_in_a_folder_is_not_the_folder_without_it(tmp_path):
    write_folder(tmp_path / "data", tree())
    folder(tmp_path / "data")
    os.symlink("gone.png", tmp_path / "data" / "train" / "c000" / "9.png")
    with pytest.raises(DataError, match=r"9\.png cannot be read: No such file"):
        folder(tmp_path / "data")


def test_the_files_of_a_folder_with_links_in_circles_are_known_in_the_end(tmp_path):
    write_folder(tmp_path / "data", tree())
    for name in ("c000", "c001"):
        os.symlink("..", tmp_path / "data" / "train" / name / "up")
    assert len(folder(tmp_path / "data", lazy=False)[0].train) == 6


@pytest.mark.parametrize("where", [0, 200, -300, -1])
def test_a_damaged_cache_is_rebuilt(source, cache, where):
    decode = Decoder()
    cached("kind", source, (), decode)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[where] ^= 0xFF
    file.write_bytes(content[: len(content) // 2] if where == -1 else content)
    assert same(cached("kind", source, (), decode), ARRAYS)
    assert same(cached("kind", source, (), decode), ARRAYS)
    assert decode.calls <= 2
    if where == -1:
        assert decode.calls == 2


def test_a_cache_with_pickled_objects_is_not_loaded(source, cache):
    decode = Decoder()
    cached("kind", source, (), decode)
    (file,) = cache.iterdir()
    np.savez(file, **{k: np.array([object()]) for k in ("train_inputs", "train_labels", "test_inputs", "test_labels")})
    assert same(cached("kind", source, (), decode), ARRAYS)
    assert decode.calls == 2


def test_a_cache_that_cannot_be_written_costs_only_time(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "file" / "below"))
    decode = Decoder()
    for calls in (1, 2):
        assert same(cached("kind", source, (), decode), ARRAYS)
        assert decode.calls == calls


def test_a_full_disk_leaves_nothing_behind(source, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert same(cached("kind", source, (), Decoder()), ARRAYS)
    assert list(cache.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(source, cache, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached("kind", source, (), Decoder())
    assert list(cache.iterdir()) == []


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("SPARCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/sparcl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/sparcl")


def test_images_come_from_the_cache_and_progress_is_silent_then(tmp_path):
    write_folder(tmp_path, tree())
    calls = []
    first = folder(tmp_path, progress=lambda *done: calls.append(done))
    assert calls[-1] == (10, 10)
    calls.clear()
    assert folder(tmp_path, progress=lambda *done: calls.append(done)).fingerprint == first.fingerprint
    assert calls == []
    assert folder(tmp_path, resize=16).input_shape == (3, 16, 16)
