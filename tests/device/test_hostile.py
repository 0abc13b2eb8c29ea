"""Files from strangers: refused in one line with exit status 2, whatever was done to them; and disks that fail."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import made
import pytest
import torch

from sparcl.checkpoint import model_file
from sparcl.sparsity import SparCL


@pytest.fixture
def file(tmp_path: Path) -> Path:
    task, *_ = made.stream()
    learner = made.learner(sparsifier=SparCL(0.6))
    learner.learn(task)
    made.packed(task, tmp_path / "s.sparcl")
    return made.export(learner, tmp_path / "m.sparcl", task)


def refused(program: Path, file: Path, command: str = "learn", note: str = "") -> str:
    done = made.run(program, command, file, *([] if command == "info" else [file.with_name("s.sparcl")]))
    assert (done.returncode, done.stdout) == (2, ""), (note, done)
    assert done.stderr.startswith("sparcl-device: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_truncated_and_odd_files(program: Path, file: Path) -> None:
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 7, 8, 100, header - 1, header, header + 5, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(program, file)
    file.write_bytes(whole + b"x")
    assert "more bytes than its tensors" in refused(program, file)
    file.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    assert "header does not fit" in refused(program, file)
    file.unlink()
    assert "cannot be read: No such file" in refused(program, file)
    os.mkfifo(file)
    assert "not a regular file" in refused(program, file)
    file.unlink()
    file.mkdir()
    assert "not a regular file" in refused(program, file)


def test_flipped_bytes_are_noticed(program: Path, file: Path) -> None:
    whole, rng = bytearray(file.read_bytes()), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        if made.run(program, "info", file).returncode == 0:  # a byte of a name that no checksum covers: spaces
            assert model_file.read(file)
        else:
            refused(program, file, "info")


def changed(file: Path, part: str, change: Any) -> None:
    """The file with one part of its metadata changed, its checksum right."""
    model = model_file.read(file)
    value = json.loads(json.dumps(getattr(model, part))) if part != "state" else model.state
    change(value)
    model_file.write(file, model_file.ModelFile(**{**vars(model), part: value}))


def removes_all(state: Any) -> None:
    ddr = state["learner"]["sparsifier"]["ddr"]
    ddr.update(kept=torch.zeros_like(ddr["kept"]), removed=len(ddr["kept"]))


def average_of(weight: torch.Tensor | None = None, running: torch.Tensor | None = None) -> Any:
    """A state that keeps an average, of this for the first weight, or for the first norm's mean."""

    def change(state: Any) -> None:
        state["settings"]["average"] = 0.1
        if weight is not None:
            state["optimizer"]["state"]["0.weight"] = {"average": weight}
        if running is not None:
            state["learner"]["average"] = {"1.running_mean": running}

    return change


def test_what_the_checksum_vouches_for_is_checked_all_the_same(program: Path, file: Path) -> None:
    whole = file.read_bytes()
    cases: list[tuple[str, Any, str]] = [
        ("graph", lambda g: g[0].update(op="exec"), "unknown op exec; allowed: convolution"),
        ("graph", lambda g: g[0].update(input=5), "input must be a whole number"),
        ("graph", lambda g: g[0].update(input=-1), "input must be a whole number"),
        ("graph", lambda g: g[1].update(residual=99), "residual must be a whole number"),
        ("graph", lambda g: g[2].update(op="add", residual=-1), "residual must be a whole number from 0"),
        ("graph", lambda g: g[2].update(op="add", residual=0), "adds what has another shape"),
        ("graph", lambda g: g[0].update(weight=[1 << 20, 1 << 20, 1, 1]), "too large"),
        ("graph", lambda g: g[0].update(weight=[16, 3, 3, 3]), "elements, it must have"),
        ("graph", lambda g: g[0].update(padding=[1 << 20, 1]), "padding and dilation must be at most"),
        ("graph", lambda g: g[0].update(stride=[0, 1]), "stride must be a whole number"),
        ("graph", lambda g: g[0].update(name="nowhere"), "lacks the tensor"),
        ("graph", lambda g: g.clear(), "the graph must be a list"),
        ("graph", lambda g: g.pop(), "another number of classes"),
        ("graph", lambda g: g[0].update(stride=[64, 64], weight=[1, 65536, 1, 1]), "stride or channels are too large"),
        (
            "graph",
            lambda g: g[2].update(weight=[2**31 - 1, 1, 1, 1]),
            "weight must be a whole number from 1 to 1048576",
        ),
        ("input_shape", lambda s: s.__setitem__(1, 1 << 20), ""),
        ("input_shape", lambda s: s.__setitem__(0, 1 << 60), "input_shape must be"),
        ("transform", lambda t: t.update(std=[0, 1, 1]), "std must be a number"),
        ("transform", lambda t: t.update(mean=[0, 1]), "mean and std need one value"),
        ("transform", lambda t: t.update(crop_padding=1 << 40), "crop_padding must be"),
        ("classes", lambda c: c.append("more"), "names another number of classes"),
        ("device", lambda d: d["method"].update(name="lwf"), "method lwf is not in this program; allowed: finetune"),
        ("device", lambda d: d["method"].update(buffer_size=0), "buffer_size must be"),
        ("state", lambda s: s["learner"].update(position={"data": "x"}), "other samples"),
        (
            "state",
            lambda s: s["optimizer"].update(kind="Rprop"),
            "optimizer Rprop is not in this program",
        ),
        ("state", lambda s: s["optimizer"]["groups"][0].update(lr=-1), "lr must be a number from 0"),
        ("state", lambda s: s["optimizer"]["groups"][0]["params"].pop(), "does not hold"),
        ("state", lambda s: s["optimizer"]["groups"].append(s["optimizer"]["groups"][0]), "2 parameter groups"),
        ("state", lambda s: s["learner"].update(frozen=["0.weight"]), "layers that are not trained"),
        ("state", lambda s: s["settings"].update(average=2), "average must be a number from"),
        ("state", lambda s: s["settings"].update(average=0), "average must be a number from"),
        ("state", lambda s: s["settings"].update(average="x"), "average must be a number"),
        ("state", average_of(weight=torch.zeros(3)), "elements, it must have"),
        ("state", average_of(weight=torch.zeros(3, dtype=torch.int64)), "F32"),
        ("state", average_of(running=torch.zeros(3)), "elements, it must have"),
        ("state", lambda s: s["learner"]["generators"]["order"].fill_(255), "no state that a generator can have"),
        ("state", lambda s: s["learner"]["generators"].update(order=torch.zeros(9, dtype=torch.uint8)), "5056 bytes"),
        ("state", lambda s: s["learner"]["sparsifier"]["tdm"]["moments"].update(passed=9), "passed must be"),
        ("state", lambda s: s["learner"]["sparsifier"]["tdm"]["collected"].update(batches=1), "lacks the tensor"),
        ("state", lambda s: s["learner"]["sparsifier"]["tdm"]["collected"]["budget"].update(spent=-1), "spent must be"),
        ("state", lambda s: s["learner"]["sparsifier"]["dgm"].update(owed=1), "owed must be true or false"),
        ("state", lambda s: s["learner"]["sparsifier"]["ddr"].update(removed=7), "removed samples must be"),
        ("state", lambda s: s["learner"]["sparsifier"]["ddr"]["kept"].view(torch.uint8).fill_(2), "true or false"),
        ("state", removes_all, "DDR keeps no sample of the task"),
        ("state", lambda s: s["layers"]["3"].update(chosen=torch.ones(3, dtype=torch.bool)), "elements, it must have"),
        ("device", lambda d: d["sparsifier"].update(name="set"), "sparsifier set is not in this program"),
        ("device", lambda d: d["sparsifier"].update(block=3), "no multiple of the block"),
        ("device", lambda d: d["sparsifier"]["layers"].pop(), "does not name all sparse layers"),
        ("device", lambda d: d["sparsifier"]["layers"][0].update(name="0"), "which is not sparse"),
        ("device", lambda d: d["sparsifier"]["layers"][0].update(target=1 << 40), "target must be"),
        ("device", lambda d: d["sparsifier"]["layers"][1].update(name="3"), "twice"),
        ("device", lambda d: d["sparsifier"]["tdm"].update(p_intra=2), "p_intra must be"),
        ("device", lambda d: d.pop("sparsifier"), "export it again"),
        ("device", lambda d: d.update(cost={"forward": -1}), "forward must be"),
        ("state", lambda s: s["learner"]["method"]["buffer"].update(seen=1 << 61), ""),
        ("state", lambda s: s["learner"]["method"]["buffer"]["labels"].fill_(77), "a label that is no class"),
        ("state", lambda s: s["layers"]["3"]["index"].fill_(-1), "index must be ascending"),
        ("state", lambda s: s["layers"]["3"]["index"].fill_(1 << 30), "index must be ascending"),
    ]
    for part, change, said in cases:
        file.write_bytes(whole)
        changed(file, part, change)
        before = file.read_bytes()
        if said:
            assert said in refused(program, file, note=said), (part, said)
        else:
            done = made.run(program, "learn", file, file.with_name("s.sparcl"), "--steps", 1)
            assert done.returncode in (0, 1, 2)
            assert done.returncode == 0 or done.stderr.count("\n") == 1
        assert file.read_bytes() == before or not said


def test_deep_json_and_control_characters(program: Path, file: Path) -> None:
    def header(text: str) -> None:
        file.write_bytes(len(text).to_bytes(8, "little") + text.encode())

    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "{",
        '{"a":1e999}',
        '{"__metadata__":{"format":1}}',
        '"\\ud800"',
        "nul",
    ):
        header(text)
        refused(program, file)
    header(json.dumps({"\x1b[2J\nname": {"dtype": "F32"}}))
    assert "\x1b" not in refused(program, file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "unknown command 'fly'; allowed: info, predict, evaluate, learn, bench, gradients"),
        (("learn", "a"), "learn needs 2 file(s), 1 given"),
        (("learn", "a", "b", "--epochs", "0"), "--epochs 0 is not allowed; use a whole number from 1 to 2147483647"),
        (
            ("learn", "a", "b", "--max-seconds", "1e10"),
            "--max-seconds 1e10 is not allowed; use a number from 0.001 to 1e+09",
        ),
        (("learn", "a", "b", "--epochs", "1", "--steps", "1"), "give one of --epochs, --steps and --max-seconds"),
        (("learn", "a", "b", "--steps", "1", "--steps", "2"), "--steps is given twice: leave one of them out"),
        (("predict", "a", "b", "--logits", "--logits"), "--logits is given twice: leave one of them out"),
        (("learn", "a", "b", "--out"), "--out without a value is not allowed; name a file"),
        (("info", "a", "--resize"), "info has no option --resize; allowed: --help"),
        (
            ("predict", "a", "b", "--out", "c"),
            "predict has no option --out; allowed: --threads --resize --logits --help",
        ),
        (("evaluate", "a", "b", "--json"), "evaluate has no option --json; allowed: --threads --resize --help"),
        (
            ("gradients", "a", "b", "c", "--steps", "1"),
            "gradients has no option --steps; allowed: --threads --resize --help",
        ),
        (("bench", "a", "--threads"), "--threads without a value is not allowed; use a whole number from 1 to 1024"),
    ],
)
def test_wrong_arguments(program: Path, arguments: tuple[str, ...], said: str) -> None:
    done = made.run(program, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sparcl-device: {said}\n")


def test_a_disk_that_is_full_leaves_the_old_file(program: Path, file: Path) -> None:
    whole = file.read_bytes()

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [program, "learn", file, file.with_name("s.sparcl"), "--steps", "2"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: (no_room(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)),
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be written: File too large" in done.stderr
    assert file.read_bytes() == whole
    assert not list(file.parent.glob(".*"))


def test_what_is_missing_is_told_before_the_first_line(program: Path, file: Path) -> None:
    whole = file.read_bytes()
    cases: list[tuple[str, Any, str]] = [
        ("device", lambda d: d.pop("method"), "device lacks method"),
        ("device", lambda d: d.update(method=3), ""),
        ("state", lambda s: s.pop("learner"), "lacks learner"),
        *(("state", lambda s, key=key: s["learner"].pop(key), key) for key in ("learned", "steps", "position")),
        ("state", lambda s: s["learner"].update(position={}), ""),
    ]
    for part, change, said in cases:
        file.write_bytes(whole)
        changed(file, part, change)
        done = made.run(program, "info", file)
        if said:
            assert (done.returncode, done.stdout) == (2, ""), (part, said)
            assert said in done.stderr
        assert done.returncode in (0, 2)
        assert (done.stdout == "") == (done.returncode == 2)
