"""The memory of activations: used again at once, in the same place, and never twice at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sparcl import kernels
from sparcl.cost.memory import resident_bytes
from sparcl.kernels import ops
from sparcl.kernels.allocator import return_all_freed_memory
from sparcl.kernels.layout import is_batch_last

pytestmark = pytest.mark.skipif(not kernels.available(), reason=kernels.why_unavailable())


def used() -> int:
    assert kernels._native is not None
    return int(kernels._native.arena_use()[0])


def made(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of this shape made by a kernel."""
    return ops.max_pool(torch.zeros(shape), (1, 1))


@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (1, 1, 1, 1), (0, 3, 2, 2)])
def test_tensors_are_batch_last_and_own_their_memory(shape: tuple[int, ...]) -> None:
    x = made(shape)
    assert x.shape == shape
    assert x.dtype == torch.float32
    assert is_batch_last(x)
    assert not x._is_view()


def test_freed_memory_is_used_again_in_the_same_place() -> None:
    before = used()
    first, second = made((32, 8, 16, 16)), made((32, 8, 16, 16))
    place = first.data_ptr()
    assert used() - before == 2 * 32 * 8 * 16 * 16 * 4
    del first
    assert made((32, 8, 16, 16)).data_ptr() == place
    del second
    assert used() == before


def test_pages_that_nothing_lies_in_go_back_to_the_system() -> None:
    kept, large = made((4, 8, 16, 16)), ops.max_pool(torch.ones((64, 32, 64, 64)), (1, 1))
    values = kept.clone()
    del large
    before = resident_bytes()
    return_all_freed_memory()
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert before - after >= 64 * 32 * 64 * 64 * 4
    assert torch.equal(kept, values)
    assert torch.equal(ops.max_pool(torch.ones((64, 32, 64, 64)), (1, 1)).contiguous(), torch.ones((64, 32, 64, 64)))


STARVED = """
import resource, torch
from sparcl.kernels import index, ops

torch.set_num_threads(2)
small = ops.conv_plan(torch.arange(144).int(), (4, 4, 3, 3))
few, some = torch.randn(144), torch.randn(16, 4, 8, 8)
ops.sparse_conv2d(some, few, small)  # starts the threads
shape = (4, 120_000, 3, 3)  # in blocks of 4, where each thread packs all channels of its input
values = torch.rand(shape) + 1  # none is 0
plan = ops.conv_plan(index.index_of(values != 0), shape, padding=(1, 1), block=4)
x = torch.randn(32, 120_000, 2, 9)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for refused in range(100):  # from too little for one thread by steps to enough for two, whatever a thread's share is
    limit = used + (refused + 1) * (10 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        ops.sparse_conv2d(x, values, plan)
        break
    except MemoryError:
        assert list(ops.sparse_conv2d(some, few, small).shape) == [16, 4, 6, 6]
print("MemoryError" if 2 < refused < 99 else refused)
"""


def test_memory_that_a_worker_thread_does_not_get_is_an_error_like_any_other() -> None:
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "MemoryError\n"


def test_many_sizes_in_any_order_never_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    before, held = used(), []
    for i in range(300):
        if held and torch.rand((), generator=generator) < 0.5:
            tensor, mark = held.pop(int(torch.randint(len(held), (), generator=generator)))
            assert bool((tensor == mark).all())
        shape = tuple(int(n) for n in torch.randint(1, 12, (4,), generator=generator))
        held.append((made(shape).fill_(i), i))
    assert all(bool((tensor == mark).all()) for tensor, mark in held)
    del held, tensor
    assert used() == before
