import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from made_data import noise, picture, tree, write_folder, write_tar, write_zip

from sparcl.errors import DataError, DataWarning
from sparcl.streams import folder
from sparcl.streams.folder import TreeReader, read_tree, statistics


@pytest.mark.parametrize("pack", [write_folder, write_tar, write_zip])
@pytest.mark.parametrize("prefix", ["", "my-images/"])
def test_a_tree_is_read_packed_or_not(tmp_path, pack, prefix):
    if pack is write_folder:
        pack(tmp_path / "data", tree(4))
    else:
        files = {f"{prefix}{name}": content for name, content in reversed(tree(4).items())}  # in any order
        pack(tmp_path / "data", files)
    stream = folder(tmp_path / "data")
    assert (len(stream), stream.input_shape) == (2, (3, 32, 32))
    assert stream.class_names == ("c000", "c001", "c002", "c003")
    assert stream[1].train.labels.tolist() == [2, 2, 2, 3, 3, 3]
    assert stream[1].train.inputs[:, 1, 9, 9].tolist() == [20, 21, 22, 30, 31, 32]
    assert stream[1].test.inputs[:, 2, 0, 0].tolist() == [120, 121, 130, 131]


def test_images_are_normalised_by_their_own_statistics(tmp_path):
    write_folder(tmp_path, tree(2, train=5))
    task = folder(tmp_path)[0]
    out = task.transform.test(task.train.inputs)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(3))
    assert task.transform.flip
    assert task.transform.crop_padding == 4


def test_statistics_match_numpy_and_a_constant_channel_divides_by_nothing():
    inputs = np.stack([noise(k, 8).transpose(2, 0, 1) for k in range(7)])
    inputs[:, 2] = 51
    found = statistics(inputs)
    scaled = inputs.astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 2, 3)))
    np.testing.assert_allclose(found.std[:2], scaled.std((0, 2, 3))[:2])
    assert found.std[2] == pytest.approx(1.0)


def test_mixed_sizes_need_a_resize(tmp_path):
    write_folder(tmp_path, tree() | {"train/c001/0.png": picture(0, (20, 30))})
    with pytest.raises(DataError, match=r"train/c000/0\.png is 32×32, train/c001/0\.png is 20×30; .*resize=32"):
        folder(tmp_path)
    assert folder(tmp_path, resize=(24, 16)).input_shape == (3, 24, 16)


def test_other_files_are_passed_over(tmp_path):
    junk = ("train/c000/._0.png", "train/c000/notes.txt", "train/.git/x.png", "README.png", "val/1.png")
    write_folder(tmp_path, tree() | dict.fromkeys(junk, b"no image"))
    write_zip(tmp_path / "data.zip", tree() | {"__MACOSX/train/c000/0.png": b"no image"})
    with pytest.warns(DataWarning, match=r"1 file\(s\) passed over, the first train/c000/notes\.txt"):
        one = folder(tmp_path)
    assert one.fingerprint == folder(tmp_path / "data.zip").fingerprint


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("gone", "beside", "says"),
    [
        ("test", ("val",), r"val/ not read: only train/ and test/ are; call it test/ to test on it$"),
        ("none", ("valid", "val"), r"val/, valid/ not read: only train/ and test/ are$"),
        ("none", (), None),
    ],
)
def test_a_split_of_another_name_is_not_passed_over_in_silence(tmp_path, lazy, gone, beside, says):
    files = {name: content for name, content in tree().items() if not name.startswith(gone)}
    files |= {f"{name}/c000/9.png": picture(1) for name in beside} | {"labels/c000/list.csv": b"", ".git/a/x.png": b""}
    write_folder(tmp_path, files)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):  # also from the cache
            folder(tmp_path, lazy=lazy)
    assert len(told) == (2 if says else 0)
    assert all(re.search(f"^{tmp_path}: {says}", str(one.message)) for one in told)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_wrong_with_a_folder_of_classes_names_what_is_there(tmp_path, lazy):
    for fault, says in (
        ({}, r"class 'empty' has no images in empty/: every class"),
        ({"empty/0.png": picture(0, (20, 30))}, r"images of mixed size: c000/0\.png is 32×32, empty/0\.png is 20×30"),
        ({"empty/0.png": b"none"}, r"empty/0\.png is no readable image"),
    ):
        data = tmp_path / f"data{len(says)}"
        write_folder(data, {name.removeprefix("train/"): c for name, c in tree().items() if "train" in name} | fault)
        (data / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=f"^{data}: {says}"):
            folder(data, classes_per_task=3, lazy=lazy)


@pytest.mark.parametrize("pack", [write_folder, write_tar, write_zip])
def test_files_that_are_passed_over_are_counted_each_time_also_from_the_cache(tmp_path, pack, monkeypatch):
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    extra = {"train/c000/more/9.png": picture(1), "test/c001/a.heic": b"", "train/list.csv": b""}
    pack(tmp_path / "data", tree() | extra)
    for _ in range(2):
        with pytest.warns(
            DataWarning, match=r"data: 3 file\(s\) passed over, the first t.*: only images in train/<class>/"
        ):
            stream = folder(tmp_path / "data")
        assert len(stream[0].train) == 6


@pytest.mark.parametrize("pack", [write_tar, write_zip])
def test_two_trees_in_one_archive_are_refused_by_name(tmp_path, pack):
    folds = {f"fold{k}/{name}": content for k in (1, 2) for name, content in tree().items()}
    pack(tmp_path / "data", folds)
    with pytest.raises(DataError, match=r"two trees, fold1/t\w+/ and fold2/t\w+/"):
        folder(tmp_path / "data")


def test_a_tree_inside_a_tree_is_refused(tmp_path):
    write_folder(tmp_path, tree() | {"train/old/train/c000/7.png": picture(7)})
    with pytest.raises(
        DataError, match=r"two trees, train/ and train/old/train/|two trees, train/old/train/ and train/"
    ):
        folder(tmp_path)


def test_a_file_that_an_archive_holds_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own
        for name, content in [*tree().items(), ("train/c000/0.png", picture(99))]:
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"train/c000/0\.png is there twice"):
        folder(tmp_path / "data.zip")


@pytest.mark.parametrize("pack", [write_tar, write_zip])
def test_a_wrapping_folder_may_be_called_as_a_split_is(tmp_path, pack):
    pack(tmp_path / "data", {f"train/{name}": content for name, content in tree().items()})
    assert folder(tmp_path / "data").class_names == ("c000", "c001")


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_class_without_images_is_refused(tmp_path, where):
    write_folder(tmp_path, tree(4))
    (tmp_path / where / "empty").mkdir()
    with pytest.raises(DataError, match=r"class 'empty' has no images in train/"):
        folder(tmp_path)
    (tmp_path / where / "empty").rmdir()
    other = "test" if where == "train" else "train"
    for image in (tmp_path / other / "c002").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=f"class 'c002' has no images in {other}/"):
        folder(tmp_path)


def test_a_damaged_image_is_named(tmp_path):
    write_folder(tmp_path, tree() | {"test/c001/1.png": picture(0)[:50]})
    with pytest.raises(DataError, match=r"test/c001/1\.png is no readable image"):
        folder(tmp_path)


def test_what_is_no_tree_is_refused_with_the_layout(tmp_path):
    with pytest.raises(DataError, match=r"train/<class>/\* and test/<class>/\* are needed"):
        folder(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"train/<class>/\* and test/<class>/\* are needed"):
        folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no images in train/<class>/\*"):
        folder(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        folder(tmp_path / "absent")
    with pytest.raises(DataError, match="no images"):
        folder(write_tar(tmp_path / "x.tar.gz", {"a.txt": b""}))


def test_three_classes_do_not_make_pairs(tmp_path):
    write_folder(tmp_path, tree(3))
    with pytest.raises(DataError, match="allowed are 1, 3"):
        folder(tmp_path)
    assert len(folder(tmp_path, classes_per_task=1)) == 3


def test_too_many_classes_are_refused_before_all_are_decoded(tmp_path, monkeypatch):
    """Every class is looked for in every sample: a zip of 300,000 members would be work without end."""
    monkeypatch.setattr("sparcl.streams.split.MAX_CLASSES", 3)
    source = write_zip(tmp_path / "many.zip", tree(classes=5))
    monkeypatch.setattr(TreeReader, "arrays", None)  # it would be called at the end
    with pytest.raises(DataError, match="more than 3 classes"):
        read_tree(source, None, None)
