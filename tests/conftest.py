"""Shared by all tests: one thread, so that what is measured and compared does not depend on the machine's cores."""

import pytest
import torch
from hypothesis import settings

# A busy machine is no failure: speed is measured in benchmarks/, never in tests.
settings.register_profile("sparcl", deadline=None)
settings.load_profile("sparcl")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
