import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparcl.checkpoint import Store, files, tree
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError


def made(number: int) -> tree.State:
    return {"number": number, "weights": torch.arange(4.0) * number, "none": None}


def folders(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir())


def test_the_newest_two_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (5, 9, 12):
        assert store.save(number, made(number)) == tmp_path / f"step-{number}"
    assert folders(tmp_path) == ["latest", "step-12", "step-9"]
    assert (tmp_path / "latest").read_text() == "step-12\n"
    loaded = Store(tmp_path).load()
    assert loaded is not None
    assert (loaded.name, loaded.damaged) == ("step-12", ())
    assert tree.difference(loaded.state, made(12)) is None


def test_the_same_step_twice_replaces_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(3):
        store.save(7, made(number))
    assert folders(tmp_path) == ["latest", "step-7.1", "step-7.2"]
    assert open_folder(tmp_path)["number"] == 2


def test_no_checkpoint_is_none_and_an_empty_store(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        assert Store(place).load() is None
        assert Store(place).empty
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            open_folder(place)
    (tmp_path / "checkpoint").mkdir()  # a run's directory
    with pytest.raises(CheckpointError, match=rf"holds no checkpoint .*; {tmp_path / 'checkpoint'} may$"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", [files.MANIFEST, files.STATE, files.TENSORS])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_a_damaged_newest_is_reported_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    store = Store(tmp_path)
    store.save(1, made(1))
    path = store.save(2, made(2)) / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-1], "empty": b""}[damage])
    loaded = Store(tmp_path).load()
    assert loaded is not None
    assert (loaded.name, loaded.state["number"]) == ("step-1", 1)
    assert len(loaded.damaged) == 1
    assert "step-2" in loaded.damaged[0]
    Store(tmp_path, loaded.name).save(2, made(3))  # to the same place, while latest still names the damaged one
    again = Store(tmp_path).load()
    assert again is not None
    assert (again.name, again.state["number"], again.damaged) == ("step-2", 3, ())
    assert folders(tmp_path) == ["latest", "step-1", "step-2"]


@pytest.mark.parametrize("text", ["", "step-9", "../step-1", "step-1\n" * 30, "\xff"])
def test_a_damaged_latest_costs_nothing(tmp_path: Path, text: str) -> None:
    Store(tmp_path).save(1, made(1))
    (tmp_path / "latest").write_text(text, encoding="latin-1")
    loaded = Store(tmp_path).load()
    assert loaded is not None
    assert loaded.name == "step-1"


def test_where_none_can_be_used_it_says_why(tmp_path: Path) -> None:
    (Store(tmp_path).save(1, made(1)) / files.STATE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint .* can be used: .*state.json has 2 bytes"):
        Store(tmp_path).load()


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True])
def test_another_format_version_is_refused_by_name(tmp_path: Path, version: object) -> None:
    folder = Store(tmp_path).save(1, made(1))
    manifest = json.loads((folder / files.MANIFEST).read_text())
    (folder / files.MANIFEST).write_text(json.dumps({**manifest, "version": version}))
    with pytest.raises(CheckpointError, match=r"format version .*; this sparcl reads 1"):
        files.read(folder)


def test_leftovers_of_a_save_that_was_cut_off_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(1, made(1))
    shutil.copytree(tmp_path / "step-1", tmp_path / ".step-2.tmp")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-2")
    (tmp_path / "step-2" / files.MANIFEST).unlink()
    (tmp_path / ".latest.tmp").write_text("st")
    Store(tmp_path).save(2, made(2))
    assert folders(tmp_path) == ["latest", "step-1", "step-2"]
    assert open_folder(tmp_path)["number"] == 2


def test_tensors_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    state = {str(dtype).removeprefix("torch."): torch.ones(3, 2).to(dtype) for dtype in files.DTYPES} | {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "view": torch.arange(10.0)[::3],
    }
    folder = Store(tmp_path).save(0, state)
    read = load_file(folder / files.TENSORS)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_dtypes_that_others_may_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="complex64"):
        Store(tmp_path).save(0, {"z": torch.zeros(2, dtype=torch.complex64)})
    assert Store(tmp_path).empty


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    one = Store(tmp_path / "one").save(3, {"b": torch.ones(2), "a": {"y": 1, "x": torch.zeros(3)}})
    other = Store(tmp_path / "other").save(3, {"a": {"x": torch.zeros(3), "y": 1}, "b": torch.ones(2)})
    for name in (files.MANIFEST, files.STATE, files.TENSORS):
        assert (one / name).read_bytes() == (other / name).read_bytes()
