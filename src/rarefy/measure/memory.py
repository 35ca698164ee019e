# SPDX-License-Identifier: Apache-2.0
"""How much memory a call needs at its peak."""

import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rarefy.task import Inputs, tensors_of

STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory now; where the system does not say, the highest so far."""
    if STATM.is_file():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(run: Callable[[Inputs], Any], inputs: Inputs, *, interval: float = 5e-4) -> int:
    """Bytes by which memory rises above its level before, during one call.

    On CUDA inputs the allocator's own peak. On the CPU the process's resident memory is sampled by a
    second thread every `interval` seconds; memory that an earlier call has left allocated and this one
    uses again is not seen, so make this the first call of a fresh runtime.
    """
    device = next((t.device for t in tensors_of(inputs)), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(inputs)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = highest = resident()
    finished = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not finished.wait(interval):
            highest = max(highest, resident())

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        run(inputs)
        highest = max(highest, resident())
    finally:
        finished.set()
        watcher.join()
    return max(highest - before, 0)
