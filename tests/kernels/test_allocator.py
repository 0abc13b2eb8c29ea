"""Memory that has been freed leaves the process, each time."""

from __future__ import annotations

import platform

import pytest
import torch

from sparcl.kernels.allocator import return_freed_memory
from sparcl.run.footprint import resident

BLOCK, BLOCKS = 100_000, 400  # bytes: small enough for the heap, where a hole does not leave by itself


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps no such heap")
def test_freed_memory_is_given_back_each_time() -> None:
    for _ in range(2):
        blocks = [torch.ones(BLOCK, dtype=torch.uint8) for _ in range(BLOCKS)]
        del blocks[:-1]  # the last one holds the end of the heap
        before = resident("VmRSS")
        return_freed_memory()
        after = resident("VmRSS")
        assert before is not None
        assert after is not None
        assert before - after > BLOCK * BLOCKS / 2
        del blocks
