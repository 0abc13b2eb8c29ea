"""Every command walked as a new user would: each situation is one line and the right exit code, or it simply works.

Wrong order, no data, a full disk, no colour, a pipe, Windows' line ends, spaces and letters of all alphabets in paths.
What needs a process of its own is in test_walk_apart.py, odd files in robustness/test_odd_files.py, stopped runs in
test_signals.py, closed and full outputs in test_cli.py, the help in run/test_manual.py.
"""

from __future__ import annotations

import json
import resource
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from walked import MEASURE, content, words_of

from sparcl.main import _main
from sparcl.run import bench


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
    "export absent --format device --out x": "absent does not exist: name a run directory, or a TOML file",
    "export run --format device --out run/result.json": "is a file of the run in",
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
