"""Data that stays where it is until it is needed: `np.memmap`, Dataset, DataLoader, a folder of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_data import noise, tree, write_folder, write_zip
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from sparcl.errors import ConfigError, DataError, DataWarning
from sparcl.streams import Stream, folder, from_arrays, make_task
from sparcl.streams.lazy import WITNESSES, Lazy, joined

Image = pytest.importorskip("PIL.Image")


def mapped(path: Path, array: np.ndarray) -> np.memmap:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def arrays(n: int = 24, dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 200, (n, 2, 4, 4)).astype(dtype)
    return x, np.arange(n) % 4


class Listed(Dataset):
    """Map-style; counts what is read."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y, self.read = x, y, 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        return self.x[i], self.y[i]


class Flowing(IterableDataset):
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Any:
        return iter(zip(self.x, self.y, strict=True))


def same(one: Stream, other: Stream) -> bool:
    """Whether both hold the same samples in the same order."""
    return len(one) == len(other) and all(
        a.classes == b.classes
        and torch.equal(p.inputs[:], q.inputs[:])
        and p.inputs.dtype == q.inputs.dtype
        and torch.equal(p.labels, q.labels)
        for a, b in zip(one, other, strict=True)
        for p, q in ((a.train, b.train), (a.test, b.test))
    )


# --- the protocol -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">i4", bool])
def test_a_memmap_gives_the_stream_of_its_array(tmp_path: Path, dtype: Any) -> None:
    x, y = arrays(dtype=dtype)
    lazy = mapped(tmp_path / "x.npy", x)
    options: dict[str, Any] = {"classes_per_task": [1, 3], "class_order_seed": 3, "limit_per_class": 5}
    stream = from_arrays(lazy, y, lazy, y, **options)
    assert isinstance(stream[0].train.inputs, Lazy)
    assert stream.lazy
    assert same(stream, from_arrays(x, y, x, y, **options))
    assert same(stream.limit_test(2), from_arrays(x, y, x, y, **options).limit_test(2))
    assert same(stream.merged(), from_arrays(x, y, x, y, **options).merged())


def test_it_is_indexed_as_a_tensor_is(tmp_path: Path) -> None:
    x, y = arrays()
    lazy, held = make_task(mapped(tmp_path / "x.npy", x), y).train.inputs, torch.from_numpy(x)
    assert (lazy.shape, lazy.dtype, len(lazy), lazy.dim()) == (held.shape, held.dtype, len(held), held.dim())
    for index in (3, -1, slice(2, 9), slice(0, 0), torch.tensor([5, 1, 1]), torch.arange(24) % 3 == 0):
        assert torch.equal(lazy[index], held[index])
    assert torch.equal(lazy.select(torch.tensor([4, 2]))[0], held[4])
    both = joined([lazy, held[:3], lazy.select(torch.tensor([7]))])
    assert torch.equal(both[:], torch.cat([held, held[:3], held[7:8]]))
    with pytest.raises(IndexError):
        lazy[24]


def test_a_fingerprint_looks_at_all_labels_and_some_samples(tmp_path: Path) -> None:
    x, y = arrays(400)
    names = iter("abcdefgh")

    def of(x: np.ndarray, y: np.ndarray) -> str:
        return from_arrays(mapped(tmp_path / f"{next(names)}.npy", x), y, classes_per_task=4).fingerprint

    first = of(x, y)
    assert of(x.copy(), y) == first
    last, labels = x.copy(), y.copy()
    last[-1, 0, 0, 0] += 1
    labels[[5, 6]] = labels[[6, 5]]
    assert of(last, y) != first
    assert of(x, labels) != first
    unseen = x.copy()
    unseen[1] += 1
    assert of(unseen, y) == first  # as documented: 64 of 400 are looked at
    assert WITNESSES == 64


def test_what_is_not_finite_is_named_when_it_is_read(tmp_path: Path) -> None:
    x, y = arrays(dtype=np.float32)
    x[17, 1, 2, 3] = np.nan
    task = make_task(mapped(tmp_path / "x.npy", x), y)
    assert torch.isfinite(task.train.inputs[:8]).all()
    with pytest.raises(DataError, match="training inputs hold NaN or infinite values in sample 17: all must be finite"):
        task.train.inputs[:]
    x = np.full((4, 2), 1e300)
    with pytest.raises(DataError, match="in sample 0"):
        from_arrays(mapped(tmp_path / "y.npy", x), [0, 1, 0, 1])


def test_a_memmap_that_is_no_data_is_refused(tmp_path: Path) -> None:
    y = [0, 1]
    with pytest.raises(DataError, match="complex64: allowed are uint8"):
        from_arrays(mapped(tmp_path / "x.npy", np.zeros((2, 3), np.complex64)), y)
    with pytest.raises(DataError, match="non-empty"):
        from_arrays(mapped(tmp_path / "y.npy", np.zeros(2)), y)
    with pytest.raises(DataError, match="3 training inputs but 2 training labels"):
        from_arrays(mapped(tmp_path / "z.npy", np.zeros((3, 2))), y)


BOUNDED = """
import resource, sys
import numpy as np
import sparcl
from sparcl import methods, nn, streams
x = np.lib.format.open_memmap(sys.argv[1], mode="r")
y = np.arange(len(x)) % 4
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (160 << 20),) * 2)
stream = streams.from_arrays(x, y, x[:64], y[:64], classes_per_task=[3, 1], class_order_seed=1)
learner = sparcl.Learner(nn.MLP(4, x.shape[1:], 4), methods.ER(8), steps=3, batch_size=16)
for task in stream:
    learner.learn(task)
learner.evaluate()
print(learner.predict(x[:1]).labels)
"""


def test_three_hundred_megabytes_are_learned_from_in_half_of_that(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(25600, 3, 64, 64)).flush()
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path / "x.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    held = BOUNDED.replace("streams.from_arrays(x", "streams.from_arrays(np.array(x)")
    failed = subprocess.run(
        [sys.executable, "-c", held, str(tmp_path / "x.npy")], capture_output=True, text=True, check=False
    )
    assert "MemoryError" in failed.stderr  # the limit is one


# --- PyTorch's data sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_dataset_gives_the_stream_of_its_arrays(dtype: Any) -> None:
    x, y = arrays(dtype=dtype)
    reference = from_arrays(x, y, x, y, classes_per_task=2)
    for given in (
        Listed(x, y.tolist()),
        Listed(torch.from_numpy(x), torch.from_numpy(y)),
        TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        DataLoader(Listed(x, y), batch_size=5, shuffle=True),
        Flowing(x, y),
        DataLoader(Flowing(x, y), batch_size=5),
    ):
        assert same(from_arrays(given, None, given, None, classes_per_task=2), reference)


def test_a_dataset_is_read_once_for_its_labels_and_then_as_needed() -> None:
    x, y = arrays()
    given = Listed(x, [("cat", "dog", "cow", "fox")[k] for k in y])
    task = make_task(given, test=given)
    assert task.names == ("cat", "dog", "cow", "fox")
    before = given.read
    assert torch.equal(task.train.inputs[torch.tensor([3, 9])], torch.from_numpy(x[[3, 9]]))
    assert given.read == before + 2
    given.targets = given.y
    given.read = 0
    assert make_task(given).names == task.names
    assert given.read == 1  # its targets are its labels
    part, _ = random_split(given, [10, 14], torch.Generator().manual_seed(0))
    assert (
        make_task(part).train.labels.tolist()
        == make_task(Subset(Listed(x, given.y), part.indices)).train.labels.tolist()
    )


def test_pictures_become_channels_first() -> None:
    rgb, grey = noise(0, 6), noise(1, 6)[:, :, 0]
    task = make_task(Listed([Image.fromarray(rgb)] * 2, ["a", "b"]))
    assert torch.equal(task.train.inputs[0], torch.from_numpy(rgb.transpose(2, 0, 1).copy()))
    assert make_task(Listed([Image.fromarray(grey)] * 2, ["a", "b"])).train.inputs.shape == (2, 1, 6, 6)


class Damaged(Listed):
    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise OSError("the disk\nis gone")
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            lambda x, y: Listed([*x[:5], x[5][:1]], y[:6]),
            DataError,
            r"training sample 5 is uint8 \[1, 4, 4\], but sample",
        ),
        (lambda x, _: Listed(x, [[1, 2]] * 24), DataError, "label .* is a list"),
        (lambda x, y: Listed(x, y + 0.5), DataError, "is a float: one string or whole number"),
        (lambda x, _: Listed(x, x), DataError, "one string or whole number"),
        (lambda x, y: Damaged(x, y), DataError, "training sample 7 cannot be read: the disk is gone"),
        (lambda x, y: list(zip(x, y, strict=True))[:0], DataError, "there are no training labels"),
        (lambda x, y: Listed(x[:0], y[:0]), DataError, "data set is empty"),
        (lambda x, y: Flowing(x[:0], y[:0]), DataError, "data set is empty"),
        (lambda x, _: TensorDataset(torch.from_numpy(x)), DataError, r"sample 0 is a tuple: a pair \(x, y\)"),
        (lambda *_: Flowing(["a"], [1]), DataError, "sample 0 is a str: an array or tensor of numbers is needed"),
        (
            lambda x, y: DataLoader(Listed(x, y), sampler=WeightedRandomSampler([1.0] * 24, 24)),
            ConfigError,
            "WeightedRandomSampler.*Subset",
        ),
        (
            lambda x, y: DataLoader(Listed(x, y), sampler=RandomSampler(Listed(x, y), num_samples=5)),
            ConfigError,
            "RandomSampler.*Subset",
        ),
        (lambda x, y: DataLoader(Listed(x, y), collate_fn=len), ConfigError, "collate_fn of its own"),
    ],
)
def test_what_is_no_pair_of_sample_and_label_is_one_line(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make_task(given(*arrays()))
    assert "\n" not in str(caught.value)


def test_a_label_that_changes_is_noticed() -> None:
    given = Listed(*arrays())
    task = make_task(given)
    given.y = given.y[::-1]
    with pytest.raises(DataError, match="training sample 1 came with label 2, but was 1 before"):
        task.train.inputs[1]


def test_what_can_only_be_iterated_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparcl.streams.room.memory_left", lambda: 1000)
    with pytest.raises(DataError, match=r"so it is kept in memory, .* give a Dataset with a length"):
        make_task(Flowing(*arrays(1000)))


# --- a folder ---------------------------------------------------------------------------------------------------------


def pictures(classes: int = 3, side: int = 8) -> dict[str, bytes]:
    """Every image another noise."""
    import io

    files = {}
    for seed, name in enumerate(tree(classes, 4, 2)):
        out = io.BytesIO()
        Image.fromarray(noise(seed, side)).save(out, "PNG")
        files[name] = out.getvalue()
    return files


@pytest.mark.parametrize("resize", [None, (5, 7)])
def test_a_folder_read_lazily_is_the_folder_read_at_once(tmp_path: Path, resize: Any) -> None:
    write_folder(tmp_path, pictures())
    options: dict[str, Any] = {"classes_per_task": [2, 1], "class_order": ["c002", "c000", "c001"], "resize": resize}
    lazy, held = folder(tmp_path, lazy=True, **options), folder(tmp_path, lazy=False, **options)
    assert lazy.lazy
    assert not held.lazy
    assert same(lazy, held)
    assert lazy[0].transform.normalize.mean == held[0].transform.normalize.mean
    assert lazy[0].transform.normalize.std == held[0].transform.normalize.std
    assert (lazy.class_names, lazy.input_shape) == (held.class_names, held.input_shape)


def test_what_does_not_fit_into_memory_is_read_lazily_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, pictures())
    monkeypatch.setattr("sparcl.streams.room.memory_left", lambda: 18 * 192)
    assert not folder(tmp_path, classes_per_task=3).lazy
    monkeypatch.setattr("sparcl.streams.room.memory_left", lambda: 18 * 192 - 1)
    with pytest.warns(DataWarning, match="need 0 MiB of memory, and 0 MiB are free: they are read as they are needed"):
        assert folder(tmp_path, classes_per_task=3).lazy
    with pytest.raises(DataError, match=r"more than the 0 MiB .* or read a folder of them lazily \(--lazy"):
        folder(tmp_path, classes_per_task=3, lazy=False, resize=9)  # not of the cache


def test_one_pass_for_the_statistics_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", pictures())
    first = folder(tmp_path / "data", classes_per_task=3, lazy=True)
    monkeypatch.setattr("sparcl.streams.lazy_folder.np.bincount", None)  # another pass would call it
    again = folder(tmp_path / "data", classes_per_task=3, lazy=True)
    assert again[0].transform.normalize.mean == first[0].transform.normalize.mean
    monkeypatch.undo()
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    (known,) = (tmp_path / "cache").glob("*.json")
    for damaged in ("[1]", "[[1],[2],[3]]", "{", "[" * 100000, "null"):
        known.write_text(damaged)
        found = folder(tmp_path / "data", classes_per_task=3, lazy=True)
        assert found[0].transform.normalize.mean == first[0].transform.normalize.mean


def test_an_image_that_vanishes_or_changes_later_is_named(tmp_path: Path) -> None:
    files = pictures()
    write_folder(tmp_path, files)
    inputs = folder(tmp_path, classes_per_task=3, lazy=True)[0].train.inputs
    (tmp_path / "train/c001/1.png").unlink()
    (tmp_path / "train/c001/2.png").write_bytes(files["train/c001/2.png"][:60])
    (tmp_path / "train/c002/0.png").write_bytes(pictures(side=9)["train/c002/0.png"])
    assert inputs[0].shape == (3, 8, 8)
    for place, message in (
        (5, r"train/c001/1\.png cannot be read: No such file"),
        (6, r"train/c001/2\.png is no readable image"),
        (8, r"images of mixed size: train/c000/0\.png is 8×8, train/c002/0\.png is 9×9"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            inputs[place]
        assert "\n" not in str(caught.value)


def test_damaged_training_images_are_found_in_the_first_pass(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures() | {"train/c001/2.png": b"no image"})
    with pytest.raises(DataError, match=r"train/c001/2\.png is no readable image"):
        folder(tmp_path, classes_per_task=3, lazy=True)


def test_an_archive_is_not_read_lazily(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="archive, which cannot be read lazily: unpack it"):
        folder(write_zip(tmp_path / "x.zip", pictures()), lazy=True)


# --- no test split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_without_a_test_split_or_without_any(tmp_path: Path, lazy: bool) -> None:
    files = {k: v for k, v in pictures().items() if k.startswith("train")}
    write_folder(tmp_path / "train-only", files)
    write_folder(tmp_path / "flat", {k.removeprefix("train/"): v for k, v in files.items()} | {"c000/more/x.png": b""})
    one = folder(tmp_path / "train-only", classes_per_task=3, lazy=lazy)
    with pytest.warns(
        DataWarning, match=r"1 file\(s\) passed over, the first c000/more/x\.png: only images in <class>/"
    ):
        two = folder(tmp_path / "flat", classes_per_task=3, lazy=lazy)
    for stream in (one, two):
        assert stream[0].test is None
        assert not stream.tested
        assert stream.class_names == ("c000", "c001", "c002")
    assert torch.equal(one[0].train.inputs[:], two[0].train.inputs[:])
    assert one.fingerprint == two.fingerprint
    packed = folder(write_zip(tmp_path / "x.zip", files), classes_per_task=3)
    assert packed[0].test is None
    assert torch.equal(packed[0].train.inputs, one[0].train.inputs[:])


@pytest.mark.parametrize("lazy", [False, True])
def test_an_empty_test_split_is_a_mistake(tmp_path: Path, lazy: bool) -> None:
    write_folder(tmp_path, {k: v for k, v in pictures().items() if k.startswith("train")})
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="class 'c000' has no images in test/"):
        folder(tmp_path, classes_per_task=3, lazy=lazy)
