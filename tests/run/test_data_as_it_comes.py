"""Runs on data as it really comes: no test split, tasks of unequal size, images that are read when they are needed."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparcl import methods
from sparcl.checkpoint import Store
from sparcl.learner import learner
from sparcl.main import _main

Image = pytest.importorskip("PIL.Image")
NOISE = pytest.importorskip("numpy").random.default_rng(0)
SMALL = [
    "--model",
    "convnet",
    "--width",
    "4",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--sparsity",
    "0.5",
]
RUN = ["run", "folder", "--classes-per-task", "1,2", "--class-order", "fox,ant,dog", *SMALL]


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (8, 8, 3), dtype="uint8")).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, each in (("train", 6), ("test", 2)):
        for name in ("ant", "dog", "fox"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for k in range(each):
                (tmp_path / "photos" / split / name / f"{k}.png").write_bytes(picture())
    return tmp_path / "photos"


def run(photos: Path, out: Path, *more: str) -> dict[str, Any]:
    assert _main([*RUN, "--data", str(photos), "--out", str(out), *more]) == 0
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def test_unequal_tasks_in_a_named_order_are_recorded_as_they_are(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "run")
    assert result["data"]["tasks"] == [[0], [1, 2]]
    assert result["data"]["class_names"] == ["fox", "ant", "dog"]
    assert result["per_class"]["names"] == ["fox", "ant", "dog"]
    class_il, task_il = (result["accuracy_matrix"][key] for key in ("class_il", "task_il"))
    assert [row[0] for row in task_il] == [100.0, 100.0]  # a task of one class is always right when it is named
    counts = result["per_class"]["confusion"]
    assert [sum(row) for row in counts] == [2, 2, 2]
    assert class_il[-1] == [50.0 * counts[0][0], 25.0 * (counts[1][1] + counts[2][2])]
    assert result["class_il"] == pytest.approx(sum(class_il[-1]) / 2)  # a mean over tasks, whatever their size
    assert result["forgetting"] == pytest.approx(class_il[0][0] - class_il[1][0])
    before = result["accuracy_matrix"]["baseline"]["class_il"]
    assert result["forward_transfer"] == pytest.approx(class_il[0][1] - before[1])
    again = tmp_path / "again"
    assert _main(["run", "--config", str(tmp_path / "run" / "config.toml"), "--out", str(again)]) == 0
    assert json.loads((again / "result.json").read_text())["model_sha256"] == result["model_sha256"]
    assert "fox" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("method", ["lps", "packnet", "icarl", "fdr", "lwf"])
def test_every_kind_of_method_learns_unequal_tasks(photos: Path, tmp_path: Path, method: str) -> None:
    kind = methods.find(method)
    more = ["--sparsifier", "dense"] if kind.masks == "none" else []
    arguments = [word for word in SMALL if not more or word not in ("--sparsity", "0.5")]
    words = ["run", "folder", "--classes-per-task", "2,1", "--method", method, *arguments, *more]
    assert _main([*words, "--data", str(photos), "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy_matrix"]["task_il"][-1][1] == 100.0  # of one class
    assert 0 <= result["accuracy_matrix"]["task_il"][-1][0] <= 100.0


def test_lazily_read_images_end_in_the_same_bits(photos: Path, tmp_path: Path) -> None:
    one, two = run(photos, tmp_path / "one", "--in-memory"), run(photos, tmp_path / "two", "--lazy")
    assert one["model_sha256"] == two["model_sha256"]
    assert one["accuracy_matrix"] == two["accuracy_matrix"]
    assert "lazy = true" in (tmp_path / "two" / "config.toml").read_text()


def test_a_run_goes_on_reading_as_it_began(photos: Path, tmp_path: Path) -> None:
    whole = run(photos, tmp_path / "whole")
    real = learner.Learner._step

    def stopping(self: Any, position: Any) -> None:
        if self.steps == 4:
            raise KeyboardInterrupt
        real(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.Learner, "_step", stopping)
        patch.setattr("sparcl.streams.room.memory_left", lambda: 0)  # too little when it begins
        with pytest.warns(UserWarning, match="are read as they are needed"):
            code = _main([*RUN, "--data", str(photos), "--out", str(tmp_path / "run"), "--checkpoint-every", "1"])
        assert code == 130
    assert run(photos, tmp_path / "run", "--resume")["model_sha256"] == whole["model_sha256"]  # and enough later
    assert "lazy = true" in (tmp_path / "run" / "config.toml").read_text()
    assert _main([*RUN, "--data", str(photos), "--out", str(tmp_path / "run"), "--resume"]) == 0


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:50])])
def test_an_image_that_is_lost_in_mid_run_is_one_line_and_the_checkpoint_is_kept(
    photos: Path, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(photos, tmp_path / "whole")
    victim = photos / "train" / "dog" / "3.png"
    content, real = victim.read_bytes(), learner.Learner._step

    def losing(self: Any, position: Any) -> None:
        if self.steps == 3:
            damage(victim)
        real(self, position)

    words = [*RUN, "--lazy", "--data", str(photos), "--out", str(tmp_path / "run")]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.Learner, "_step", losing)
        assert _main([*words, "--checkpoint-every", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train/dog/3.png" in line
    assert Store(tmp_path / "run" / "checkpoint").load() is not None
    victim.write_bytes(content)
    assert _main([*words, "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["model_sha256"] == whole["model_sha256"]


def test_without_a_test_split_accuracy_is_null_and_said_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(photos, tmp_path / "whole")
    (photos / "test").rename(tmp_path / "test")
    capsys.readouterr()
    result = run(photos, tmp_path / "run")
    told = capsys.readouterr().out
    assert told.count("there are no test samples: accuracy is not measured") == 1
    assert "task 2/2 learned\n" in told
    nulls = ("class_il", "task_il", "forgetting", "backward_transfer", "forward_transfer", "per_class")
    assert [result[key] for key in nulls] == [None] * 6
    assert result["model_sha256"] == whole["model_sha256"]  # learned as ever
    for words, shows in (
        (["watch", str(tmp_path / "run")], "finished: no test samples"),
        (["report", str(tmp_path / "run")], "Mean ± sample"),
        (["report", str(tmp_path / "run"), "--format", "csv"], "folder"),
        (["predict", str(tmp_path / "run"), str(photos / "train" / "ant" / "0.png")], "%"),
    ):
        assert _main(words) == 0
        assert shows in capsys.readouterr().out
    assert "null" not in (tmp_path / "run" / "report.html").read_text()
    assert _main(["pack", "folder", "--data", str(photos), "--split", "test", "--out", str(tmp_path / "x")]) == 2


def test_a_run_without_a_test_split_goes_on(photos: Path, tmp_path: Path) -> None:
    (photos / "test").rename(tmp_path / "test")
    whole, real = run(photos, tmp_path / "whole"), learner.Learner._step

    def stopping(self: Any, position: Any) -> None:
        if self.steps == 4:
            raise KeyboardInterrupt
        real(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.Learner, "_step", stopping)
        words = [*RUN, "--data", str(photos), "--out", str(tmp_path / "run"), "--checkpoint-every", "1"]
        assert _main(words) == 130
    resumed = run(photos, tmp_path / "run", "--resume")
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["flops"] == whole["flops"]


def test_a_batch_of_one_where_nothing_forbids_it(photos: Path, tmp_path: Path) -> None:
    words = ["run", "folder", "--data", str(photos), "--classes-per-task", "3", "--model", "mlp", "--width", "8"]
    more = ["--epochs", "1", "--batch-size", "1", "--threads", "1", "--sample-removal", "0"]
    assert _main([*words, *more, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["samples"]["seen"] == 18


def test_a_task_of_unequal_ones_is_packed_as_the_run_has_it(photos: Path, tmp_path: Path) -> None:
    words = ["pack", "folder", "--data", str(photos), "--classes-per-task", "1,2", "--class-order", "fox,ant,dog"]
    for task, classes in (("1", ["fox"]), ("2", ["ant", "dog"])):
        file = tmp_path / f"{task}.sparcl"
        assert _main([*words, "--task", task, "--out", str(file)]) == 0
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert json.loads(header["__metadata__"]["classes"]) == classes


def test_a_run_without_a_checkpoint_is_no_device_s_file(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "run"
    run(photos, whole)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").write_bytes((whole / "config.toml").read_bytes())
    capsys.readouterr()
    for form, suffix in (("torch", ".safetensors"), ("device", ".sparcl")):
        words = ["export", str(tmp_path / "begun"), "--format", form, "--out", str(tmp_path / f"x{suffix}")]
        assert _main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "go on with sparcl run --resume" in error


def test_a_limit_of_tests_that_are_not_there_is_refused_where_a_run_begins(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(photos / "test")
    for how in ("--in-memory", "--lazy"):
        command = [*RUN, "--data", str(photos), "--out", str(tmp_path / "run"), "--limit-test-per-class", "1", how]
        assert _main(command) == 2
        assert "limit test per class 1 changes nothing: there are no test samples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
