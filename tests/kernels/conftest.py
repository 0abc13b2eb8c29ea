"""Every test of the kernels that asks for `isa` runs once for each instruction set of this processor."""

from collections.abc import Iterator

import pytest

from sparcl import kernels

if not kernels.available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(params=kernels.available_isas(), scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels._native.select_isa(request.param)
    yield request.param
    kernels._native.select_isa(None)
