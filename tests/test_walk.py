"""Every command walked as a new user would: each situation is one line and the right exit code, or it simply works.

Wrong order, no data, no compiler, an old processor, a full disk, Ctrl-C, no colour, a pipe, Windows' line ends, spaces
and letters of other alphabets in paths. Odd files are in robustness/test_odd_files.py, stopped runs in test_signals.py,
closed and full outputs in test_cli.py, the help in run/test_manual.py.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcl.main import _main
from sparcl.run import bench
from sparcl.run.lock import locked

QUICK = ["--epochs", "1", "--width", "4", "--limit-per-class", "20", "--threads", "1", "--backend", "reference"]
RUN = ["run", "seq-digits", *QUICK]
MEASURED = ("block", 0.9, 2.0, "nchw", 1.0, 2.0, 8.0, 10**8, 10**7, "avx2", 1, 32, 4, "mlp")
ROW = dict(
    zip(
        (
            *("pattern", "sparsity", "dense_ms", "dense_variant", "native_ms", "speedup", "theoretical_gain"),
            *("peak_dense_bytes", "peak_native_bytes", "isa", "threads", "batch", "width", "model"),
        ),
        MEASURED,
        strict=True,
    )
)
"""What a measurement would give; measuring takes half a minute."""
MEASURE = bench.measure_all


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("walk") / "run"
    assert _main([*RUN, "--out", str(out)]) == 0
    np.save(out.parent / "x.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))
    return out


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a finished run in it, `run`, and what it can be asked, `x.npy`."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(finished, folder / "run")
    shutil.copy(finished.parent / "x.npy", folder)
    (folder / "settings.toml").write_text('stream = "seq-digits"\n')
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bench, "measure_all", lambda **_: [ROW])
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if p.name != ".lock"}


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert _main(words) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("sparcl: ")
    assert "Traceback" not in line
    return line


WRONG = {
    # wrong order of arguments
    "run derpp seq-digits": "usage: sparcl run [OPTIONS]",
    "run --method seq-digits derpp": "derpp is a method: --method derpp",
    "run rigl": "rigl is a sparsifier: --sparsifier rigl",
    "run settings.toml": "--config settings.toml",
    "run --config run": "name run/config.toml",
    "predict x.npy run": "x.npy is no run directory and no device's file",
    "export run.safetensors --out run": "must end in .safetensors",
    "pack run --out x": "unknown stream 'run'",
    "report x.npy": "x.npy is no sparcl model",
    "watch x.npy": "is not a run directory",
    "sweep run": "not a regular file; name run/config.toml",
    "sweep settings.toml": "unknown key 'stream'; allowed: base, grid, runs",
    "info run": "usage: sparcl info [OPTIONS]",
    "bench resnet18": "usage: sparcl bench [OPTIONS]",
    # nothing, or too little
    "run": "no stream is named; allowed: seq-digits",
    "predict": "(a finished run's directory, or a device's file); usage: sparcl predict",
    "predict run": "'files' (images, or .npy arrays of samples); usage: sparcl predict",
    "export run": "'--out' (file to write); usage: sparcl export",
    "pack seq-digits": "'--out' (file to write); usage: sparcl pack",
    "report": "usage: sparcl report",
    "watch": "usage: sparcl watch",
    "sweep": "usage: sparcl sweep",
    "walk": "commands: run, watch, predict, export, pack, report, sweep, info, bench",
    "wacth run": "Did you mean 'watch'?",
    # no data
    "run folder --data absent": "absent does not exist",
    "run seq-digits --data photos": "seq-digits reads no data: leave 'photos' out",
    "pack seq-digits --data photos --out x": "seq-digits reads no data",
    "pack folder --data absent --out x": "absent does not exist",
    "predict run absent.npy": "absent.npy does not exist",
    "predict absent x.npy": "absent is no run directory",
    "export absent --out x.safetensors": "absent is no run directory",
    "export absent --format device --out x": "configuration absent/config.toml does not exist",
    "report absent": "no such directory",
    "watch absent": "absent does not exist",
    "sweep absent.toml": "absent.toml does not exist",
    "bench --job --stream folder": "the shape of folder is not known",
    # names that are nearly right
    "run seq_digits": "did you mean seq-digits?",
    "run seq-digits --method DER++": "did you mean derpp?",
    "run seq-digits --sparsifier sparkl": "did you mean sparcl?",
    "run seq-digits --model resnet": "did you mean resnet18?",
    "run seq-digits --pattern blocks": "did you mean block?",
    "run seq-digits --backend nativ": "did you mean native?",
    "run seq-digits --track tensorbord": "did you mean tensorboard?",
    "run seq-digits --preset sparcl_script": "did you mean sparcl-script?",
    "run seq-digits --epoch 1": "--epochs",
    "report run --format htm": "did you mean html?",
    "predict run x.npy --format jsn": "did you mean json?",
    "export run --out x.onnx --format onx": "did you mean onnx?",
    "pack seq-digits --out x --split tests": "did you mean test?",
    "sweep settings.toml --launcher slrum": "unknown key",
    "bench --model ConvNet1": "did you mean convnet?",
    "info --flop": "--flops",
    # places that cannot be written
    "run seq-digits --out x.npy": "x.npy is a file",
    "export run --out run.safetensors/x.safetensors": "cannot be written: Not a directory",
    "export run --format device --out run": "it is a folder",
    "pack seq-digits --out run": "it is a folder",
    "report run --format html --out run": "Is a directory",
    "report run --out x.npy/report": "Not a directory",
    "bench --json run": "cannot write run: Is a directory",
    "bench --json x.npy/rows": "cannot write x.npy/rows: Not a directory",
    "info --flops --json": "leave one of them out",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_line_that_leads_on_and_changes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    if not line.startswith("bench --json"):
        monkeypatch.setattr(bench, "measure_all", MEASURE)
    else:
        monkeypatch.setattr(bench, "measure_all", lambda **_: pytest.fail("it was measured first"))
    (here / "run.safetensors").touch()
    before = content(here)
    assert WRONG[line] in refused(capsys, shlex.split(line))
    assert content(here) == before


SPACED = "Läufe für alle 界/ein Lauf é"


def words_of(run: Path, to: Path, samples: Path) -> dict[str, list[str]]:
    """Every command that reads a run or writes a file, with the files that it leaves."""
    return {
        "predict": ["predict", str(run), str(samples)],
        "predict csv": ["predict", str(run), str(samples), "--format", "csv"],
        "predict json": ["predict", str(run), str(samples), "--format", "json"],
        "export": ["export", str(run), "--out", str(to / "netz.safetensors")],
        "export device": ["export", str(run), "--format", "device", "--out", str(to / "netz.sparcl")],
        "pack": ["pack", "seq-digits", "--out", str(to / "proben.sparcl")],
        "report": ["report", str(run)],
        "report csv": ["report", str(run), "--format", "csv", "--out", str(to / "bericht.csv")],
        "report html": ["report", str(run), "--format", "html", "--out", str(to / "bericht.html")],
        "watch": ["watch", str(run)],
        "info": ["info"],
        "info json": ["info", "--json"],
        "bench": ["bench", "--json", str(to / "zeiten.json")],
    }


COMMANDS = list(words_of(Path(), Path(), Path()))


@pytest.mark.parametrize("command", COMMANDS)
def test_spaces_and_letters_of_other_alphabets_and_no_colour_in_a_pipe(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run, to, samples = here / SPACED, here / "nach ä" / "neu", here / "Proben ö 1.npy"
    run.parent.mkdir()
    (here / "run").rename(run)
    (here / "x.npy").rename(samples)
    words = words_of(run, to, samples)[command]
    capsys.readouterr()
    assert _main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "\x1b" not in said.out
    if to.exists():
        (written, *_) = sorted(to.iterdir())
        assert written.stat().st_size > 0
        assert command == "bench" or f"written: {to}" in said.out.replace("\n", "")
    if command == "predict json":
        assert json.loads(said.out)[1]["file"] == str(samples)
    if command == "predict csv":
        assert said.out.splitlines()[1].startswith(f"{samples},0,1,")


@pytest.mark.parametrize("command", COMMANDS)
def test_records_with_windows_line_ends_are_read(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for file in (here / "run" / name for name in ("config.toml", "result.json", "events.jsonl", "README.md")):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert _main(words_of(here / "run", here / "to", here / "x.npy")[command]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    if command == "watch":
        assert "finished: Class-IL" in said.out
    if command.startswith("report"):
        assert "left out" not in said.out


def test_settings_with_windows_line_ends_run_in_a_folder_with_spaces(here: Path) -> None:
    settings = here / "Einstellungen ü.toml"
    lines = ['stream = "seq-digits"', "limit_per_class = 20", "epochs = 1", "width = 4", 'backend = "reference"', ""]
    settings.write_bytes("\r\n".join(lines).encode())
    assert _main(["run", "--config", str(settings), "--out", SPACED]) == 0
    assert (here / SPACED / "result.json").exists()
    table = here / "Tabelle ü.toml"
    table.write_bytes("\r\n".join(["[base]", *lines, "threads = 1", "[grid]", "seed = [3]", ""]).encode())
    assert _main(["sweep", str(table), "--out", "viele Läufe"]) == 0
    assert (here / "viele Läufe" / "seq-digits-derpp-sparcl-0.9-seed3" / "result.json").exists()


@contextmanager
def full_disk(size: int = 600) -> Iterator[None]:
    """No file can grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[0] in ("export", "pack") or c == "report html"])
def test_a_disk_that_is_full_is_one_line_and_leaves_what_was_there(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = words_of(here / "run", here, here / "x.npy")[command]
    Path(words[-1]).write_text("the old one")
    before = content(here)
    capsys.readouterr()
    with full_disk():
        code = _main(words)
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.splitlines() == [said.err.rstrip()]
    assert said.err.rstrip().endswith("File too large")
    assert content(here) == before


def test_a_measurement_that_cannot_be_saved_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with full_disk(10):
        assert _main(["bench", "--json", "rows.json"]) == 2
    said = capsys.readouterr()
    assert "2.00×" in said.out
    assert said.err == "sparcl: cannot write rows.json: File too large\n"
    assert not (here / "rows.json").exists()


def test_a_sweep_on_a_full_disk_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "table.toml").write_text('[base]\nstream = "seq-digits"\n')
    with full_disk(10):
        line = refused(capsys, ["sweep", "table.toml", "--out", "many"])
    assert line == "sparcl: many cannot be used: File too large; choose another --out"


def in_one_process(
    here: Path, before: str, commands: list[list[str]], **environment: str
) -> list[tuple[int, str, str]]:
    """Exit codes and what was said, of commands in one new process that runs `before` first."""
    program = f"""
        import contextlib, io, json, sys
        {before}
        from sparcl.main import _main
        told = []
        for words in json.loads(sys.argv[1]):
            out, error = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                code = _main(words)
            told.append((code, out.getvalue(), error.getvalue()))
        print(json.dumps(told))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), json.dumps(commands)]
    done = subprocess.run(
        command, cwd=here, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [tuple(one) for one in json.loads(done.stdout)]


ANY = ["run", "seq-digits", "--epochs", "1", "--width", "4", "--limit-per-class", "20", "--threads", "1"]


@pytest.mark.parametrize(
    ("before", "isa", "reason"),
    [
        ('sys.modules["sparcl.kernels._native"] = None', "", "the compiled part of sparcl is missing"),
        ("", "no-such-set", "SPARCL_ISA=no-such-set is not available; this processor has: "),
    ],
    ids=["no compiler", "another processor"],
)
def test_without_the_engine_all_works_on_the_reference_backend_or_says_why_not(
    here: Path, before: str, isa: str, reason: str
) -> None:
    if isa:
        pytest.importorskip("sparcl.kernels._native")
    commands = [
        ["info"],
        [*ANY, "--out", "auto"],
        [*ANY, "--out", "native", "--backend", "native"],
        ["bench", "--model", "mlp"],
        *([*words] for words in words_of(here / "run", here / "to", here / "x.npy").values() if words[0] != "bench"),
    ]
    environment = {"SPARCL_ISA": isa} if isa else {}
    info, auto, native, measured, *others = in_one_process(here, before, commands, **environment)
    assert info[0] == 0
    assert f"backend native     missing: {reason}" in info[1]
    assert (auto[0], auto[2]) == (0, "")
    assert json.loads((here / "auto" / "result.json").read_text())["backend"]["name"] == "reference"
    for refusal in (native, measured):
        assert refusal[0] == 2
        assert len(refusal[2].splitlines()) == 1
        assert f"backend native is not available: {reason}" in refusal[2]
    assert not (here / "native").exists()
    assert [(code, error) for code, _, error in others] == [(0, "")] * len(others)


def test_an_old_processor_computes_with_its_own_instructions(here: Path) -> None:
    pytest.importorskip("sparcl.kernels._native")
    info, run = in_one_process(here, "", [["info"], [*ANY, "--out", "old", "--backend", "native"]], SPARCL_ISA="plain")
    assert "backend native     available (plain" in info[1]
    assert (run[0], run[2]) == (0, "")
    assert json.loads((here / "old" / "result.json").read_text())["backend"]["isa"] == "plain"


def test_letters_that_a_terminal_has_not_are_spelled_out(here: Path) -> None:
    words = [sys.executable, "-m", "sparcl", "info"]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    done = subprocess.run(words, cwd=here, env=plain, capture_output=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"convnet" in done.stdout


def test_ctrl_c_while_pytorch_is_imported_is_no_traceback(here: Path) -> None:
    (here / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import os, signal, sys
            class Meanwhile:
                def find_spec(self, name, *_):
                    if name == "torch":
                        os.kill(os.getpid(), signal.SIGINT)
            sys.meta_path.insert(0, Meanwhile())
        """)
    )
    command = [sys.executable, "-m", "sparcl", "info"]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    command = [sys.executable, "-c", "import sparcl"]  # a program of one's own hears of it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert "KeyboardInterrupt" in done.stderr


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["predict", "run", "x.npy"], "sparcl.run.predict.answer"),
        (["export", "run", "--out", "x.safetensors"], "sparcl.checkpoint.disk.write_all"),
        (["pack", "seq-digits", "--out", "x"], "sparcl.checkpoint.disk.write_all"),
        (["report", "run", "--out", "x"], "sparcl.report.records.read_run"),
        (["bench"], "sparcl.run.bench.measure_all"),
        (["info"], "sparcl.run.info.about"),
        (["run", "seq-digits", "--out", "x"], "sparcl.run.build.learner"),
    ],
)
def test_ctrl_c_is_130_without_a_word_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], at: str
) -> None:
    before = content(here)
    monkeypatch.setattr(at, interrupted)
    capsys.readouterr()
    assert _main(words) == 130
    assert capsys.readouterr().err == ""
    assert content(here) == before


def test_ctrl_c_ends_a_watch(here: Path) -> None:
    command = [sys.executable, "-m", "sparcl", "watch", "run"]
    text = (here / "run" / "events.jsonl").read_text()
    (here / "run" / "events.jsonl").write_text("".join(text.splitlines(keepends=True)[:-1]))  # not its end
    with locked(here / "run"), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        assert b"begins" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, error = watch.communicate(timeout=100)
    assert (watch.returncode, error) == (130, b"")
