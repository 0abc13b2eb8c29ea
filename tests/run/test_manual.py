"""The help of every command: it fits a terminal, and what it shows is right."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from sparcl.cli import app
from sparcl.errors import nearest, unknown
from sparcl.main import _main
from sparcl.run.manual import EXAMPLES


def group() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize("command", ["", *EXAMPLES])
def test_help_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert _main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(example == line.strip() for line in lines) for example in EXAMPLES.get(command, ()))
    if command:  # an option's explanation has room for more than a word or two
        explained = [line for line in lines if line.startswith("│") and line.endswith("│")]
        room = [len(line) - len(line[:-1].rstrip()) for line in explained]
        assert len(explained) < 120
        assert min(room) < 30


def test_every_command_has_examples_and_they_are_right() -> None:
    commands = group().commands
    assert set(EXAMPLES) == set(commands)
    for name, examples in EXAMPLES.items():
        for example in examples:
            program, command, *words = shlex.split(example)
            assert (program, command) == ("sparcl", name)
            commands[name].make_context(name, words)


def test_the_options_of_a_run_stand_by_axis(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.index("What is computed") < said.index("--sparsity")
    assert said.index("How it is learned") < said.index("--epochs")
    assert said.index("What arrives") < said.index("--limit-per-class")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("DER++", "derpp"), ("der_pp", "derpp"), ("Derpp", "derpp"), ("ERACE", "er-ace"), ("vgg", None), ("", None)],
)
def test_the_nearest_name_is_meant(given: str, meant: str | None) -> None:
    names = ("finetune", "er", "er-ace", "der", "derpp")
    assert nearest(given, names) == meant
    said = unknown("method", given, names)
    hint = "" if meant is None else f"; did you mean {meant}?"
    assert said == f"unknown method {given!r}; allowed: finetune, er, er-ace, der, derpp{hint}"


def test_a_long_name_takes_no_time() -> None:
    assert nearest("x" * 10**7, ["derpp"]) is None
