# SPDX-License-Identifier: Apache-2.0
"""How many threads a measurement uses: those that torch would use, but never more than the machine gives."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota.isdigit() and int(period) > 0:
        cores = min(cores, -(-int(quota) // int(period)))
    return max(cores, 1)


def default_threads() -> int:
    """`torch.get_num_threads()`, at most `available_cores()`."""
    import torch

    return max(1, min(torch.get_num_threads(), available_cores()))
