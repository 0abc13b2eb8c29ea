"""Shared by all tests: one thread, so that what is measured and compared does not depend on the machine's cores."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
