"""Which instruction set runs, and what is said where one is missing."""

import os
import subprocess
import sys

import pytest

from sparcl import kernels

ASK = "from sparcl import kernels as k; print(k.isa() if k.available() else k.why_unavailable())"


def answer(isa: str) -> str:
    environment = os.environ | {"SPARCL_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_the_environment_chooses(isa: str) -> None:
    assert answer(isa).strip() == isa


def test_an_unknown_set_is_refused_with_the_list_of_those_there_are() -> None:
    said = answer("mmx").strip()
    assert said == f"SPARCL_ISA=mmx is not available; this processor has: {', '.join(kernels.available_isas())}"


def test_the_package_imports_without_the_compiled_part() -> None:
    code = "import sys; sys.modules['sparcl.kernels._native'] = None; import sparcl; " + ASK
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("the compiled part of sparcl is missing")
