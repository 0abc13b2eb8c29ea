"""Runs pytest on a compiled part built with sanitizers: `make test-sanitized-bindings` calls it.

python tests/kernels/under_sanitizers.py PATH_OF_NATIVE.so [PYTEST ARGUMENTS]
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch  # before the compiled part, which asks it for its exchange interface

NAME = "sparcl.kernels._native"


def main(path: str, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module  # instead of the installed one
    from sparcl import kernels

    assert torch.__version__
    assert kernels.available(), kernels.why_unavailable()
    assert kernels._native is module
    return int(pytest.main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
