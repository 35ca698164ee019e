# SPDX-License-Identifier: Apache-2.0
"""How much memory a call needs at its peak."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rarefy.task import Inputs, call, tensors_of

STATM = Path("/proc/self/statm")
INTERVAL = 5e-4  # seconds between two looks


def peak_memory(function: Callable[..., Any], inputs: Inputs) -> int:
    """Bytes above the level before the call.

    On the CPU (Linux) this is the growth of the whole process's resident memory while the call runs, looked
    at twice every millisecond: activations, workspaces, whatever the process touches for the first time.
    Not seen are peaks between two looks and memory that a library kept from an earlier call and uses
    again (ONNX Runtime does: open a new session), so the figure is a lower bound. Weights that are loaded
    already are not in it. On a graphics card it is what torch's allocator counts, exactly.

    Args:
        function: a network or a program.
        inputs: of the call; on a graphics card if that is to be measured.
    """
    if any(t.is_cuda for t in tensors_of(inputs)):
        return peak_on_gpu(function, inputs)
    gc.collect()
    give_back()
    before = resident_bytes()
    peak, done = before, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        with torch.no_grad():
            result = call(function, inputs)
        peak = max(peak, resident_bytes())
        del result
    finally:
        done.set()
        watcher.join()
    return peak - before


def give_back() -> None:
    """Returns the C library's free memory to the system, where it can, so that its reuse shows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def peak_on_gpu(function: Callable[..., Any], inputs: Inputs) -> int:
    """The same by torch's own account of the current card."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        call(function, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_bytes() -> int:
    """Resident memory of this process; where there is no /proc, its highest level so far."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource
        import sys

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
