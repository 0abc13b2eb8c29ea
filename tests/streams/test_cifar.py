import os
import pickle

import numpy as np
import pytest
import torch
from made_data import tree, write_folder, write_tar, write_zip

from sparcl.errors import DataError
from sparcl.streams import seq_cifar10, seq_cifar100
from sparcl.streams.cifar import CIFAR10, CIFAR100


def batch(n_classes, seed, per_class=2):
    """int64 [N], uint8 [N, 3072]; the first value of each image is its label."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.tile(np.arange(n_classes), per_class))
    pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    pixels[:, 0] = labels
    return labels, pixels


def official(variant, form, protocol=2):
    """The files of an official archive, small."""
    layout = variant.layouts[form == "binary"]
    files = {}
    for seed, name in enumerate(layout.files):
        labels, pixels = batch(variant.n_classes, seed)
        if form == "python":
            content = {b"data": pixels, layout.labels_key: labels.tolist(), b"filenames": [b"x.png"] * len(labels)}
            files[name] = pickle.dumps(content, protocol)
        else:
            before = [labels[:, None] // 5, labels[:, None]][-layout.label_bytes :]
            files[name] = np.concatenate([*before, pixels], axis=1).astype(np.uint8).tobytes()
    names = [f"class {k}" if form == "python" else f"class-{k}" for k in range(variant.n_classes)]
    files[layout.names] = (
        pickle.dumps({layout.names_key: [n.encode() for n in names]}, protocol)
        if form == "python"
        else "\n".join(names).encode()
    )
    return {f"{layout.folder}/{name}": content for name, content in files.items()}


OPEN = {CIFAR10: seq_cifar10, CIFAR100: seq_cifar100}


def check(stream, variant, train_batches):
    assert (len(stream), stream.n_classes, stream.input_shape) == (
        5 if variant is CIFAR10 else 10,
        variant.n_classes,
        (3, 32, 32),
    )
    for task in stream:
        assert torch.equal(task.train.inputs[:, 0, 0, 0].long(), task.train.labels)
        assert torch.equal(task.test.inputs[:, 0, 0, 0].long(), task.test.labels)
        assert len(task.test) == 2 * len(task.classes)
        assert len(task.train) == train_batches * len(task.test)
        assert task.transform.flip


@pytest.mark.parametrize("variant", [CIFAR10, CIFAR100], ids=lambda v: v.name)
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("pack", ["unpacked", "inside", "tar", "zip", "tar in folder"])
def test_official_archives_packed_or_not(tmp_path, variant, form, pack):
    files = official(variant, form)
    layout = variant.layouts[form == "binary"]
    place = {
        "unpacked": lambda: write_folder(tmp_path, files),
        "inside": lambda: write_folder(tmp_path, files) / layout.folder,
        "tar": lambda: write_tar(tmp_path / "any-name", files),
        "zip": lambda: write_zip(tmp_path / "any-name", files),
        "tar in folder": lambda: write_tar(tmp_path / f"{layout.folder}.tar.gz", files).parent,
    }[pack]()
    stream = OPEN[variant](place)
    check(stream, variant, len(layout.train))
    assert stream.class_names[-1] in (f"class {variant.n_classes - 1}", f"class-{variant.n_classes - 1}")


def test_both_forms_give_the_same_pictures(tmp_path):
    python, binary = (seq_cifar10(write_tar(tmp_path / form, official(CIFAR10, form))) for form in ("python", "binary"))
    assert python.fingerprint == binary.fingerprint


def test_channels_rows_columns_are_in_the_official_order(tmp_path):
    files = official(CIFAR10, "python")
    labels, pixels = batch(10, 5)
    stream = seq_cifar10(write_folder(tmp_path, files))
    first = pixels[np.flatnonzero(labels == 0)[0]]  # "the first 1024 bytes are the red channel, row by row"
    assert torch.equal(stream[0].test.inputs[0].flatten(), torch.from_numpy(first))
    assert int(stream[0].test.inputs[0, 2, 1, 3]) == first[2 * 1024 + 32 + 3]


def test_cifar10_and_cifar100_live_in_one_folder(tmp_path):
    for variant in (CIFAR10, CIFAR100):
        write_tar(tmp_path / f"{variant.layouts[0].folder}.tar.gz", official(variant, "python"))
    check(seq_cifar10(tmp_path), CIFAR10, 5)
    check(seq_cifar100(tmp_path), CIFAR100, 1)


@pytest.mark.parametrize("pack", [write_folder, write_tar])
def test_a_tree_of_images_will_do(tmp_path, pack):
    stream = seq_cifar10(pack(tmp_path / "data", tree(10)))
    assert stream.class_names[3] == "c003"
    assert stream[1].train.inputs[:, 0, 0, 0].tolist() == [20, 21, 22, 30, 31, 32]


def test_an_archive_or_folder_named_after_it_is_found(tmp_path):
    write_tar(tmp_path / "cifar10-jpeg.tar.xz", tree(10), "w:xz")
    assert seq_cifar10(tmp_path).n_classes == 10
    write_folder(tmp_path / "other" / "CIFAR_10", tree(10))
    assert seq_cifar10(tmp_path / "other").n_classes == 10


def test_other_images_are_refused_with_the_stream_for_them(tmp_path):
    for number, files in enumerate((tree(4), tree(10, side=28))):
        with pytest.raises(DataError, match="10 of 32×32: use the stream 'folder'"):
            seq_cifar10(write_folder(tmp_path / str(number), files))


def test_class_names_are_optional(tmp_path):
    for form in ("python", "binary"):
        files = {k: v for k, v in official(CIFAR10, form).items() if "meta" not in k}
        assert seq_cifar10(write_tar(tmp_path / form, files)).class_names == tuple("0123456789")


def dump(**items):
    return pickle.dumps({key.encode(): value for key, value in items.items()}, 2)


ZEROS = np.zeros((20, 3072), dtype=np.uint8)


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("form", "name", "content", "message"),
    [
        ("python", "data_batch_3", None, "incomplete: data_batch_3 missing"),
        ("python", "data_batch_3", b"", "data_batch_3 is damaged"),
        ("python", "data_batch_3", dump(data=ZEROS, labels=[0] * 20)[:-100], "data_batch_3 is damaged"),
        ("python", "test_batch", dump(data=ZEROS, labels=[0] * 19), r"no uint8 array of shape \(19, 3072\)"),
        ("python", "test_batch", dump(data=ZEROS[:, :99], labels=[0] * 20), "no uint8 array"),
        ("python", "test_batch", dump(labels=[0] * 20), "no uint8 array"),
        ("python", "test_batch", pickle.dumps({b"data": ZEROS[:0], b"labels": []}, 4), "no uint8 array"),
        ("python", "test_batch", dump(data=ZEROS), "labels are not a list"),
        ("python", "test_batch", dump(data=ZEROS, labels=["0"] * 20), "labels are not a list"),
        ("python", "test_batch", dump(data=ZEROS, labels=[-1] * 20), "labels are not a list"),
        ("python", "test_batch", dump(data=ZEROS, labels=[10] * 20), "test label 10 of sample 0 is out of range"),
        ("python", "test_batch", dump(data=ZEROS, labels=[1] * 20), "class 'class 0' has no test samples"),
        ("python", "test_batch", pickle.dumps([1]), "holds no dictionary"),
        ("python", "batches.meta", dump(label_names=[b"a"]), "does not list 10 class names"),
        ("binary", "test_batch.bin", bytes(3073 * 4 - 1), "a multiple of 3073 is needed"),
        ("binary", "test_batch.bin", b"", "a multiple of 3073 is needed"),
        ("binary", "test_batch.bin", b"\x0a" + bytes(3072), "test label 10 of sample 0 is out of range"),
        ("binary", "data_batch_5.bin", None, "incomplete: data_batch_5.bin missing"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, form, name, content, message):
    files = official(CIFAR10, form)
    key = next(k for k in files if k.endswith("/" + name))
    if content is None:
        del files[key]
    else:
        files[key] = content
    with pytest.raises(DataError, match=message) as caught:
        seq_cifar10(write_tar(tmp_path / "cifar.tgz", files))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "cifar.tgz") in str(caught.value)


def test_a_hostile_batch_executes_nothing(tmp_path):
    mark = tmp_path / "executed"
    files = official(CIFAR10, "python")
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps({b"data": Hostile(f"touch {mark}")}, 2)
    with pytest.raises(DataError, match="system is not allowed"):
        seq_cifar10(write_folder(tmp_path, files))
    assert not mark.exists()


def test_missing_data_says_which_file_to_put_where(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(DataError, match=rf"put cifar-10-python\.tar\.gz into {place} by hand"):
            seq_cifar10(place)
    with pytest.raises(DataError, match=r"put cifar-100-python\.tar\.gz into"):
        seq_cifar100(tmp_path / "empty")
    assert not (tmp_path / "absent").exists()


def test_an_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data for seq-cifar10: it needs data_batch_1, "):
        seq_cifar10(write_tar(tmp_path / "x.tar", {"a.txt": b""}, "w"))


def test_real_images(shared_data):
    stream = seq_cifar10(shared_data, limit_per_class=50)
    assert stream.class_names[:3] == ("airplane", "automobile", "bird")
    assert [(len(t.train), len(t.test)) for t in stream] == [(100, 100)] * 5
    mean = torch.cat([t.train.inputs for t in stream]).float().div(255).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.03, rtol=0)
