"""Memory of this process: the accelerator's allocator when there is one, and the host's resident set."""

import os
from pathlib import Path

from sft_experiments.monitor.events import Event

GIB = 2**30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def measure_memory() -> Event:
    """``memory/*`` in GiB. The peak is that since the call before."""
    import psutil  # late: `sft plan` asks only for the capacity

    memory = {"memory/host_rss_gib": psutil.Process().memory_info().rss / GIB}
    return memory | _device_memory()


def memory_capacity_gib(device: str) -> float:
    """What there is: of the device for ``cuda``, else of the host or the container's share of it."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[1]) / GIB
    return host_capacity_gib()


def host_capacity_gib() -> float:
    """Memory of the host, or the container's share of it. Imports nothing heavy."""
    installed = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(installed, _container_limit()) / GIB


def _device_memory() -> Event:
    import torch

    if not torch.cuda.is_available() or torch.cuda.memory_reserved() == 0:  # this run does not use it
        return {}
    memory = {
        "memory/device_allocated_gib": torch.cuda.memory_allocated() / GIB,
        "memory/device_reserved_gib": torch.cuda.memory_reserved() / GIB,
        "memory/device_peak_gib": torch.cuda.max_memory_allocated() / GIB,
    }
    torch.cuda.reset_peak_memory_stats()
    return memory


def _container_limit() -> float:
    for path in _CGROUP_LIMITS:
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return float("inf")
