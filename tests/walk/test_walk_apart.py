"""Commands walked in processes of their own: no compiler, an old processor, a plain terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from walked import content, words_of

from sparcl.main import _main
from sparcl.run.lock import locked


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


def test_a_path_of_another_alphabet_is_readable_where_the_locale_is_c(here: Path) -> None:
    """Spelled out once (`\\xe4`), never as the halves of its bytes."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "200"}
    (here / "run").rename(here / "Läufe 界")
    for words, code, said in (
        (["report", "Läufe 界"], 0, ""),
        (["report", "Läufe 界", "--format", "html", "--out", "bäh.html"], 0, "b\\xe4h.html"),
        (["report", "Bücher"], 2, "B\\xfccher: no such directory"),
        (["watch", "Bücher"], 2, "B\\xfccher does not exist"),
        (["sweep", "ü.toml"], 2, "\\xfc.toml does not exist"),
        (["run", "folder", "--data", "Bücher"], 2, "data 'B\\xfccher' is not allowed; use one that is text in UTF-8"),
    ):
        command = [sys.executable, "-m", "sparcl", *(word.encode() for word in words)]
        done = subprocess.run(command, cwd=here, env=plain, capture_output=True, check=False, timeout=100)
        told = (done.stdout + done.stderr).decode("ascii")
        assert done.returncode == code, told
        assert said in told
        assert "udc" not in told
    assert "Läufe 界" in (here / "bäh.html").read_text(encoding="utf-8")


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
