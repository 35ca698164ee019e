# SPDX-License-Identifier: Apache-2.0
"""Memory that one batch frees is kept for the next one."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # what glibc's mallopt calls them
MAPPED = 65536  # blocks that glibc maps one by one as a rule, at most
LARGE, TRIMMED = 1 << 22, 1 << 23  # low, so that what is large goes back at once

_within = ContextVar("within", default=False)


@contextmanager
def kept_blocks() -> Iterator[None]:
    """Lets the C library take large blocks from its heap meanwhile, and keep there what is freed.

    By itself glibc maps every block of more than 32 MB anew, and the kernel fills it with zeros page by page:
    nearly half of the time of a step on the CPU where activations are that large. Peak memory grows by about
    a fifth. Afterwards all that is free goes back, and from then on blocks of 4 MB or more are mapped anew
    each time: memory is spared, work on such blocks outside is slower. Within another it does nothing. Other
    C libraries are left alone.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    adjust, trim = (getattr(library, name, None) for name in ("mallopt", "malloc_trim"))
    if adjust is None or trim is None or _within.get():
        yield
        return
    adjust(MMAP_MAX, 0)
    adjust(TRIM_THRESHOLD, -1)  # never
    outside = _within.set(True)
    try:
        yield
    finally:
        _within.reset(outside)
        adjust(MMAP_MAX, MAPPED)
        adjust(MMAP_THRESHOLD, LARGE)
        adjust(TRIM_THRESHOLD, TRIMMED)
        trim(0)
