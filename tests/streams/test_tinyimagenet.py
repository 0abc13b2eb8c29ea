import pytest
from made_data import picture, write_folder, write_tar, write_zip

from sparcl.errors import DataError
from sparcl.streams import seq_tinyimg

WNIDS = ["n09", "n01", "n05", "n03"]  # label order is that of the file, not of the alphabet


def official(prefix="tiny-imagenet-200/"):
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish, Carassius\nn09\ttarantula\n"}
    rows = []
    for label, wnid in enumerate(WNIDS):
        for i in range(3):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = picture(10 * label + i, (64, 64))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"a box"
        for i in range(2):
            name = f"val_{7 * label + i}.JPEG"
            files[f"val/images/{name}"] = picture(100 + 10 * label + i, (64, 64))
            rows.append(f"{name}\t{wnid}\t0\t0\t63\t63")
        files[f"test/images/test_{label}.JPEG"] = b"the official test images have no labels"
    files["val/val_annotations.txt"] = "\n".join(rows).encode()
    return {f"{prefix}{name}": content for name, content in reversed(files.items())}


@pytest.mark.parametrize("pack", ["unpacked", "inside", "zip", "tar", "zip in folder"])
def test_official_layout_packed_or_not(tmp_path, pack):
    place = {
        "unpacked": lambda: write_folder(tmp_path, official()),
        "inside": lambda: write_folder(tmp_path, official("")),
        "zip": lambda: write_zip(tmp_path / "any-name", official()),
        "tar": lambda: write_tar(tmp_path / "any-name", official("./"), "w:xz"),
        "zip in folder": lambda: write_zip(tmp_path / "tiny-imagenet-200.zip", official()).parent,
    }[pack]()
    stream = seq_tinyimg(place, classes_per_task=2)
    assert (len(stream), stream.input_shape) == (2, (3, 64, 64))
    assert stream.class_names == ("tarantula", "goldfish", "n05", "n03")
    assert stream[1].train.inputs[:, 0, 0, 0].tolist() == [20, 21, 22, 30, 31, 32]
    assert stream[1].test.inputs[:, 0, 0, 0].tolist() == [120, 121, 130, 131]
    assert stream[1].test.labels.tolist() == [2, 2, 3, 3]
    assert stream[0].transform.crop_padding == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wnids.txt", None, "wnids.txt missing"),
        ("val/val_annotations.txt", None, "val_annotations.txt missing"),
        ("wnids.txt", b"n09 n01 n05", "unknown class 'n03'"),
        ("wnids.txt", b"n09 n01 n05 n03 n77", "class 'n77' has no images in train/"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn09", r"val/val_\d+\.JPEG has no class"),
        ("val/images/val_0.JPEG", None, None),
        ("val/images/val_0.JPEG", b"", r"val/val_0\.JPEG is no readable image"),
        ("train/n05/images/n05_1.JPEG", picture(0, (32, 32)), "images of mixed size"),
    ],
)
def test_an_incomplete_layout_is_refused(tmp_path, name, content, message):
    files = official()
    files[f"tiny-imagenet-200/{name}"] = content
    files = {k: v for k, v in files.items() if v is not None}
    path = write_tar(tmp_path / "tiny.tar", files, "w")
    if message is None:  # one image fewer is no damage
        assert len(seq_tinyimg(path, classes_per_task=4)[0].test) == 7
        return
    with pytest.raises(DataError, match=message) as refused:
        seq_tinyimg(path, classes_per_task=2)
    assert str(path) in str(refused.value)


def test_missing_data_says_which_file_to_put_where(tmp_path):
    with pytest.raises(DataError, match=rf"put tiny-imagenet-200\.zip into {tmp_path} by hand"):
        seq_tinyimg(tmp_path)
    write_folder(tmp_path, {"wnids.txt": b"n01", "val/val_annotations.txt": b""})
    with pytest.raises(DataError, match="images missing"):
        seq_tinyimg(tmp_path)


def test_real_images(shared_data):
    stream = seq_tinyimg(shared_data)
    assert (len(stream), stream.n_classes, stream.input_shape) == (10, 200, (3, 64, 64))
    assert all((len(t.train), len(t.test)) == (1000, 500) for t in stream)
    assert len(set(stream.class_names)) == 200
