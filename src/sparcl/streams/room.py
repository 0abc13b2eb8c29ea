"""How much memory data may still take: what the machine, the container and the limits of the process leave."""

from __future__ import annotations

import os
import resource
from pathlib import Path

SHARE = 0.8
"""Of what is free: the rest is for the run itself."""

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of the container, in its two versions."""


def memory_left() -> int:
    """Bytes that decoded data may take."""
    return int(SHARE * min(left for left in (_machine(), _container(), _process()) if left is not None))


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> int | None:
    for limit, use in CGROUPS:
        try:
            return max(0, int(Path(limit).read_text(encoding="ascii")) - int(Path(use).read_text(encoding="ascii")))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


def _process() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 0
    return max(0, limit - used)
