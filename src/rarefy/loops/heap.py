# SPDX-License-Identifier: Apache-2.0
"""Memory that one batch frees is kept for the next one."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # what glibc's mallopt calls them

_within = ContextVar("within", default=False)


@contextmanager
def kept_blocks() -> Iterator[None]:
    """Lets the C library take large blocks from its heap meanwhile, and keep there what is freed.

    By itself glibc maps every block of more than 32 MB anew, and the kernel fills it with zeros page by page:
    nearly half of the time of a step on the CPU where activations are that large. Peak memory grows by about
    a fifth. Afterwards all that is free goes back, and the limits are those that the environment set
    (``MALLOC_MMAP_THRESHOLD_`` and its kin, or ``GLIBC_TUNABLES``), or else those at which glibc arrives by
    itself where large blocks are freed. Within another it does nothing. Other C libraries are left alone.
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
        mapped = _limit("mmap_threshold")
        trimmed = 1 << 26 if mapped is None else 1 << 17  # what glibc makes of either
        adjust(MMAP_MAX, _limit("mmap_max") or 65536)
        adjust(MMAP_THRESHOLD, mapped or 1 << 25)
        adjust(TRIM_THRESHOLD, _limit("trim_threshold") or trimmed)
        trim(0)


def _limit(name: str) -> int | None:
    """A limit that the environment gave to glibc when the process began."""
    value = os.environ.get(f"MALLOC_{name.upper()}_", "")
    for tunable in os.environ.get("GLIBC_TUNABLES", "").split(":"):
        key, _, told = tunable.partition("=")
        value = told if key == f"glibc.malloc.{name}" else value
    return int(value) if value.isdecimal() else None
