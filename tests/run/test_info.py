"""`sparcl info`: one line for each thing that can be named, and what is missing with the command that installs it."""

from __future__ import annotations

import json
import re
from importlib import metadata

import pytest

from sparcl import methods, nn, streams
from sparcl.main import _main
from sparcl.run import info
from sparcl.sparsity import SPARSIFIERS

REGISTRIES = {"streams": streams.STREAMS, "methods": methods.METHODS, "sparsifiers": SPARSIFIERS, "models": nn.MODELS}


def test_everything_that_can_be_named_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for section, names in REGISTRIES.items():
        at = lines.index(section) + 1
        told = [line.strip().split(None, 1) for line in lines[at : at + len(names)]]
        assert [name for name, _ in told] == list(names)
        assert len({said for _, said in told}) == len(names)
        assert all(len(said) > 20 and said.endswith((".", ").")) for _, said in told), told


def test_the_lines_are_the_docstrings_first_and_name_what_they_are_of() -> None:
    told = info.about()
    assert told["methods"]["derpp"].startswith("DER++ (Buzzega et al., 2020")
    assert told["streams"]["seq-cifar10"].startswith("CIFAR-10 in five tasks of two classes")
    assert told["sparsifiers"]["rigl"].startswith("RigL (Evci et al.")
    assert "dense" in told["sparsifiers"]["dense"]


def test_it_is_the_same_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {section: list(told[section]) for section in REGISTRIES} == {s: list(n) for s, n in REGISTRIES.items()}
    assert told == info.about()


def test_what_is_missing_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version

    def version(package: str) -> str:
        if package.lower() in ("pillow", "onnxscript"):
            raise metadata.PackageNotFoundError(package)
        return there(package)

    monkeypatch.setattr(metadata, "version", version)
    told = info.about()["optional"]
    assert told["images"].startswith("missing (pillow): pip install 'sparcl-edge[images]'")
    assert told["onnx"].startswith("missing (onnxscript): pip install 'sparcl-edge[onnx]'")
    assert told["demo"].startswith("scikit-learn ")


def test_every_optional_package_says_what_it_is_for() -> None:
    extras = {e for e in metadata.metadata("sparcl-edge").get_all("Provides-Extra", []) if e not in info.NOT_FOR_USERS}
    assert set(info.FOR) == extras == set(info.optional())


def test_without_metadata_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "DISTRIBUTION", "no-such-distribution")
    told = info.about()
    assert told["optional"] == {}
    assert "optional" not in info.as_text(told, None)


def test_a_terminal_gets_it_wrapped_and_a_pipe_a_line_each() -> None:
    told = info.about()
    wrapped, whole = info.as_text(told, 80), info.as_text(told, None)
    assert max(map(len, wrapped.splitlines())) <= 80
    assert wrapped.split() == whole.split()
    assert len(whole.splitlines()) == sum(map(len, told.values())) + 2 * (len(told) - 2)
    assert re.search(r"^backend native +(available|missing)", whole, re.MULTILINE)
