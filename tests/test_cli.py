"""The command: one line and exit code 2 for what is the user's to mend, nothing left behind; records for the rest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparcl
from sparcl.learner import Learner
from sparcl.main import _main
from sparcl.run import effect

RECORDED = {
    *("benchmark", "method", "sparsifier", "backend", "seed", "model_sha256", "accuracy_matrix"),
    *("class_il", "task_il", "forgetting", "backward_transfer", "forward_transfer"),
    *("sparsity", "samples", "flops", "seconds", "memory", "environment"),
}
QUICK = ["--epochs", "1", "--width", "4", "--limit-per-class", "40"]
NO_DGM = ("--gradient-sparsity", "0")


def refused(capsys, *arguments: str) -> str:
    """Run, expecting a refusal; the one line it printed."""
    assert _main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("sparcl: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "seq-cifar10"),
        (["run", "seq-cifar11"], "seq-cifar10"),
        (["run", "seq-digits", "--method", "derp"], "derpp"),
        (["run", "seq-digits", "--sparsifier", "sparkle"], "sparcl"),
        (["run", "seq-digits", "--model", "vgg"], "resnet18"),
        (["run", "seq-digits", "--backend", "gpu"], "native"),
        (["run", "seq-digits", "--sparsity", "1.5"], "0 to 0.99"),
        (["run", "seq-digits", "--sparsity", "nan"], "0 to 0.99"),
        (["run", "seq-digits", "--sparsity", "much"], "valid number"),
        (["run", "seq-digits", "--buffer-size", "0"], "1 or more"),
        (["run", "seq-digits", "--buffer-size", "1"], "2 or more"),
        (["run", "seq-digits", "--method", "finetune", "--buffer-size", "9"], "no buffer"),
        (["run", "seq-digits", "--method", "fdr", "--buffer-size", "3"], "use 5 or more"),
        (["run", "seq-digits", "--method", "icarl", "--buffer-size", "5"], "use 10 or more"),
        (["run", "seq-digits", "--prunable", "nothing*"], "matches none"),
        (["run", "seq-digits", "--option", "alpha"], "NAME=NUMBER"),
        (["run", "seq-digits", "--option", "delta=1"], "alpha"),
        (["run", "seq-digits", "--pattern", "block", "--width", "6"], "divisible by 4"),
        (["run", "seq-digits", "--epochs", "0"], "1 or more"),
        (["run", "seq-digits", "--classes-per-task", "3"], "1, 2, 5"),
        (
            ["run", "seq-digits", "--classes-per-task", "1", "--limit-per-class", "1"],
            "layer 1 (BatchNorm2d) needs 2 or more",
        ),
        (["run", "seq-digits", "--batch-size", "1"], "layer 1 (BatchNorm2d)"),
        (["run", "seq-digits", "--classes-per-task", "4,3,4"], "add up to 11"),
        (["run", "seq-digits", "--classes-per-task", "4,x"], "use 2 or 4,3,3"),
        (["run", "seq-digits", "--classes-per-task", "10,0"], "1 or more"),
        (["run", "seq-digits", "--class-order", "1,2,cat"], "names 'cat', which is no class"),
        (["run", "seq-digits", "--class-order", "1,2,1"], "names '1' twice"),
        (["run", "seq-digits", "--class-order", "1,2"], "leaves out '0'"),
        (["run", "seq-digits", "--class-order", "1,2", "--class-order-seed", "1"], "both given"),
        (["run", "seq-digits", "--lazy"], "folder"),
        (["run", "seq-digits", "--resize", "9"], "folder"),
        (["run", "seq-digits", "--checkpoint-every", "often"], "60s"),
        (["run", "seq-digits", "--scenario", "domain-il"], "class-il"),
        (["run", "seq-digits", "--sample-removal", "0", "--ddr-score", "forgetting"], "a share of 0 removes none"),
        (["run", "seq-digits", "--ranking", "fresh", "--importance", "none", *NO_DGM], "nothing ranks by gradients"),
        (["run", "seq-digits", "--ranking", "fresh", "--importance", "magnitude", *NO_DGM], "leave it out"),
        (
            ["run", "seq-digits", "--ranking", "fresh", "--sparsity", "0", *NO_DGM],
            "with sparsity 0 and gradient sparsity",
        ),
        (["run", "seq-digits", "--method", "joint", "--single-head"], "single head masks nothing"),
        (["run", "seq-digits", "--optimizer-option", "dampening=0.5"], "dampening goes with --momentum"),
        (
            ["run", "seq-digits", "--momentum", "0.9", "--optimizer-option", "dampening=-1"],
            "optimizer option dampening -1 is not allowed; use 0 to less than 1",
        ),
        (["run", "seq-digits", "--sparsity", "0", "--distribution", "erk"], "erk changes nothing at sparsity 0"),
        (["run", "seq-digits", "--sparsity", "0", "--first-mask", "magnitude"], "first mask magnitude changes nothing"),
        (["run", "seq-digits", "--sparsity", "0", "--importance", "none"], "importance none changes nothing"),
        (["run", "seq-digits", "--option", "alpha=1", "--option", "alpha=2"], "--option alpha is given twice"),
        (["run", "seq-digits", "--method", "packnet", "--sparsifier", "dense", "--scenario", "class-il"], "task-il"),
        (["run", "folder"], "data"),
        (["run", "folder", "--data", "absent"], "absent"),
        (["run", "seq-digits", "--lr", "1e308"], "learning rate 1e+308 is not allowed"),
        (["run", "seq-digits", "--weight-decay", "1e300"], "weight decay 1e+300 is not allowed"),
        (["run", "seq-digits", "--option", "alpha=1e308"], "method option alpha"),
        (["run", "seq-digits", "--nonsense"], "--nonsense"),
        (["run", "--config", "absent.toml"], "does not exist"),
        (["walk"], "walk"),
        (["report"], "runs"),
        (["report", "absent", "--format", "pdf"], "markdown"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says.lower() in refused(capsys, *arguments).lower()
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_a_run_that_began_before_a_setting_without_effect_was_refused_goes_on_and_answers(
    capsys, tmp_path, monkeypatch
):
    idle = ["--momentum", "1.5", "--lr", "1e-9", "--sample-removal", "0", "--ddr-score", "forgetting"]
    run = tmp_path / "run"
    command = ["run", "seq-digits", *QUICK, *idle, "--out", str(run)]
    with monkeypatch.context() as before:
        before.setattr(effect, "check", lambda _: None)
        assert _main(command) == 0
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.uint8))
    assert _main(["predict", str(run), str(tmp_path / "x.npy")]) == 0
    assert _main(["report", str(run)]) == 0
    assert _main(["export", str(run), "--out", str(tmp_path / "x.safetensors")]) == 0
    assert _main(["export", str(run), "--format", "device", "--out", str(tmp_path / "x.sparcl")]) == 0
    assert Learner.load(run / "checkpoint").sparsifier.ddr.score == "forgetting"
    assert _main([*command, "--resume"]) == 0
    (run / "result.json").unlink()
    assert _main([*command, "--resume"]) == 0
    anew = ["--out", str(tmp_path / "other"), "--resume"]
    assert "momentum 1.5 is not allowed; use 0 to less than 1" in refused(capsys, *command[:-2], *anew)
    config = (run / "config.toml").read_text().replace("momentum = 1.5", "momentum = 0.5")
    (tmp_path / "new.toml").write_text(config)
    export = ("export", str(tmp_path / "new.toml"), "--format", "device", "--out", str(tmp_path / "y.sparcl"))
    assert "a share of 0 removes none" in refused(capsys, *export)


def test_the_version_is_told(capsys):
    assert _main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparcl {sparcl.__version__}\n"


def test_the_scenario_is_told_first_with_its_forgetting(capsys, tmp_path):
    run, usual = tmp_path / "run", tmp_path / "usual"
    command = ["run", "seq-digits", *QUICK, "--sparsifier", "dense"]
    assert _main([*command, "--scenario", "task-il", "--out", str(run)]) == 0
    told = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    class_il, task_il = result["class_il"], result["task_il"]
    lost = {name: kind["forgetting"] for name, kind in result["transfer"].items()}
    assert (result["forgetting"], lost["class_il"] != lost["task_il"]) == (lost["class_il"], True)
    assert re.search(rf"Task-IL / Class-IL .* {task_il:.2f} % / {class_il:.2f} %", told)
    assert re.search(rf"forgetting \(Task-IL\) .* {lost['task_il']:.2f} %", told)
    assert re.search(r"task 5/5 learned: Task-IL .* %, Class-IL", told)
    assert _main(["watch", str(run)]) == 0
    assert f"finished: Task-IL {task_il:.2f} %, Class-IL {class_il:.2f} %" in capsys.readouterr().out
    assert _main(["report", str(run), "--format", "csv"]) == 0
    assert f",{lost['task_il']}," in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert page.index("when told the task (Task-IL)") < page.index("without being told the task (Class-IL)")
    assert f"{abs(lost['task_il']):.3g} percentage points from the best that it had known (Task-IL)" in page

    assert _main([*command, "--seed", "1", "--out", str(usual)]) == 0
    assert re.search(r"Class-IL / Task-IL .*forgetting \(Class-IL\)", capsys.readouterr().out, re.DOTALL)
    assert _main(["report", str(run), str(usual), "--format", "csv"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split(",")[6] for row in rows] == ["scenario=class-il", "scenario=task-il"], "no mean of two scenarios"
    assert "scenario" in refused(capsys, *command, "--scenario", "class-il", "--out", str(run), "--resume")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_of_other_files_is_no_run_directory(capsys, tmp_path, resume):
    for name in ("README.md", "config.toml", "main.py"):
        (tmp_path / name).write_text("mine")
    line = refused(capsys, "run", "seq-digits", *QUICK, "--out", str(tmp_path), *resume)
    assert "holds other files, such as main.py, and no run: choose another --out" in line
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("README.md", "config.toml", "main.py"), "mine"
    )


def test_a_loss_that_becomes_nan_says_where_and_leaves_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    line = refused(capsys, "run", "seq-digits", *QUICK, "--lr", "1e30", "--sparsifier", "dense", "--out", str(out))
    assert "task 1, epoch 1, step" in line
    assert not out.exists()


def test_a_run_that_fails_late_keeps_its_checkpoint(capsys, tmp_path):
    wild = ("--lr", "1e20", "--sparsifier", "dense", "--checkpoint-every", "1", "--out", str(tmp_path / "run"))
    assert "NaN or infinite" in refused(capsys, "run", "seq-digits", *QUICK, *wild)
    assert (tmp_path / "run" / "checkpoint" / "latest").exists()


def test_an_empty_directory_that_was_there_is_empty_again_and_a_used_one_untouched(capsys, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    fails = ["run", "seq-digits", *QUICK, "--lr", "1e30", "--sparsifier", "dense", "--out", str(out)]
    refused(capsys, *fails)
    assert list(out.iterdir()) == []
    (out / "mine").write_text("kept")
    assert "holds other files" in refused(capsys, *fails)
    refused(capsys, *fails, "--resume")
    assert (out / "mine").read_text() == "kept"


def test_a_network_that_memory_does_not_hold_is_refused_in_one_line_and_leaves_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    assert "not enough memory" in refused(capsys, "run", "seq-digits", "--width", "65536", "--out", str(out))
    assert not out.exists()


def test_an_unexpected_error_leaves_nothing_either(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("sparcl.run.build.learner", broken)
    with pytest.raises(ValueError, match="a defect"):
        _main(["run", "seq-digits", *QUICK, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["run", "seq-digits", "--out"], ["report"]])
def test_a_path_that_no_file_can_have_is_refused(capsys, command):
    refused(capsys, *command, "x" * 300)


def test_a_path_is_printed_as_it_is(capsys, tmp_path):
    out = tmp_path / "q[" / "b]:warning:"  # markup and an emoji to rich
    assert _main(["run", "seq-digits", *QUICK, "--backend", "reference", "--out", str(out)]) == 0
    assert "q[/b]:warning:" in capsys.readouterr().out.replace("\n", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert _main(["run", "seq-digits", *QUICK, "--backend", "reference", "--out", str(out)]) == 0
    return out


def test_a_run_leaves_its_records(finished):
    assert {"config.toml", "events.jsonl", "result.json", "model.safetensors"} <= {p.name for p in finished.iterdir()}
    result = json.loads((finished / "result.json").read_text())
    assert set(result) >= RECORDED
    assert set(result["flops"]) == {"executed", "paper", "dense", "phases"}
    assert sum(result["flops"]["phases"].values()) == result["flops"]["executed"]
    assert result["sparsity"]["weights"] == pytest.approx(0.90, abs=0.01)
    assert result["samples"]["removed"] > 0
    assert 0 < result["flops"]["executed"] < result["flops"]["dense"]
    assert len(result["accuracy_matrix"]["class_il"]) == 5
    told = result["per_class"]
    assert told["names"] == [str(i) for i in range(10)]
    right = [row[i] for i, row in enumerate(told["confusion"])]
    totals = [sum(row) for row in told["confusion"]]
    assert told["accuracy"] == [100 * r / n for r, n in zip(right, totals, strict=True)]
    by_task = [100 * sum(right[t : t + 2]) / sum(totals[t : t + 2]) for t in range(0, 10, 2)]
    assert result["accuracy_matrix"]["class_il"][-1] == pytest.approx(by_task)


def test_tdm_ddr_and_dgm_fire_in_every_task_of_one_epoch(finished):
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    for task in range(5):
        fired = {e["event"] for e in events if e["task"] == task}
        assert {"dgm.choose", "ddr.remove"} <= fired, task
        assert ({"tdm.expand", "tdm.shrink"} <= fired) == (task > 0)  # too short for an update in between


def test_its_config_runs_again_to_the_same_result(finished, tmp_path):
    out = tmp_path / "again"
    assert _main(["run", "--config", str(finished / "config.toml"), "--out", str(out)]) == 0
    first, second = (json.loads((d / "result.json").read_text()) for d in (finished, out))
    for varies in ("seconds", "memory"):
        del first[varies], second[varies]
    assert first == second


@pytest.mark.parametrize("options", [[], ["--single-head"], ["--no-single-head"]])
def test_an_option_overrides_the_file_also_with_no(tmp_path, monkeypatch, options):
    ran = []
    monkeypatch.setattr("sparcl.run.run.execute", lambda experiment, *_, **__: ran.append(experiment.single_head))
    file = tmp_path / "settings.toml"
    file.write_text('stream = "seq-digits"\nsingle_head = true\n')
    assert _main(["run", "--config", str(file), *options]) == 0
    assert ran == [options != ["--no-single-head"]]


def test_a_used_directory_is_refused_and_a_finished_one_stays(capsys, finished):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    again = ("run", "seq-digits", *QUICK, "--backend", "reference", "--out", str(finished))
    assert refused(capsys, *again).endswith("holds this run, finished: add --resume, or choose another --out")
    told = "holds a run with seed = 0, but 5 is asked for; choose another --out"
    assert refused(capsys, *again, "--seed", "5").endswith(told)
    assert _main(["run", "seq-digits", *QUICK, "--backend", "reference", "--out", str(finished), "--resume"]) == 0
    assert before == {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}


def test_joint_is_evaluated_on_the_tasks_apart(tmp_path):
    out = tmp_path / "joint"
    assert _main(["run", "seq-digits", *QUICK, "--method", "joint", "--sparsifier", "dense", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert len(result["accuracy_matrix"]["class_il"][0]) == 5
    assert result["forgetting"] is None


def test_info_names_what_can_be_named(capsys):
    assert _main(["info"]) == 0
    said = capsys.readouterr().out
    assert "seq-digits" in said
    assert "derpp" in said


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_installed_command_helps(arguments):
    done = subprocess.run([sys.executable, "-m", "sparcl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "run" in done.stdout


def redirected(output: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with its standard output redirected by a shell."""
    line = f'exec "$0" -m sparcl "$@" {output}'
    command = ["sh", "-c", line, sys.executable, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["report", "RUN"], ["info"], ["--help"], ["report", "RUN", "--format", "csv"]])
def test_a_full_standard_output_is_one_line(finished, arguments):
    done = redirected(">/dev/full", *(str(finished) if a == "RUN" else a for a in arguments))
    assert done.returncode == 2
    assert done.stderr == "sparcl: standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_run_blames_the_full_output_and_not_its_directory(tmp_path):
    done = redirected(
        ">/dev/full", "run", "seq-digits", *QUICK, "--backend", "reference", "--out", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert done.stderr == "sparcl: standard output cannot be written: No space left on device\n"


def test_a_reader_that_has_gone_is_one_line(finished):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sparcl", "report", str(finished)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "sparcl: standard output was closed by its reader\n")


def test_a_closed_standard_output_stops_nothing(finished, tmp_path):
    assert redirected(">&-", "report", str(finished)).returncode == 0
    assert redirected(">&-", "report", str(finished), "--format", "csv", "--out", str(tmp_path / "x")).returncode == 0
    assert "seq-digits" in (tmp_path / "x").read_text()


def test_with_standard_error_closed_a_refusal_is_not_among_the_results(tmp_path):
    assert redirected(f">{tmp_path}/x 2>&-", "report", "absent").returncode == 2
    assert (tmp_path / "x").read_text() == ""


def test_files_that_are_passed_over_are_one_line_of_the_run(tmp_path):
    made_data = pytest.importorskip("PIL.Image")
    for split, count in (("train", 4), ("test", 1)):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            (folder / "more").mkdir(parents=True)
            for k in range(count):
                made_data.new("RGB", (16, 16), (40 * k, 0, 90)).save(folder / f"{k}.png")
            (folder / "more" / "9.png").write_bytes(b"")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--buffer-size", "8", *QUICK]
    command = [sys.executable, "-m", "sparcl", "run", "folder", *where, "--model", "convnet", "--backend", "reference"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = [line for line in done.stdout.splitlines() if "passed over" in line]
    assert len(told) == 1
    assert "data: 4 file(s) passed over, the first train/cat/more/9.png: only images in train/<class>/" in told[0]


def test_a_configuration_may_begin_with_a_byte_order_mark(capsys, tmp_path):
    (tmp_path / "c.toml").write_bytes(b'\xef\xbb\xbfstream = "seq-digits"\nmethod = "derp"\r\n')
    assert "unknown method 'derp'" in refused(capsys, "run", "--config", str(tmp_path / "c.toml"))
