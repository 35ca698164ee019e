# SPDX-License-Identifier: Apache-2.0
"""Blocks that are freed in a training are taken again without new pages, and given back after it."""

import platform
import resource
import subprocess
import sys

import pytest

COUNT = """
import ctypes
import resource
import torch
from rarefy.loops.heap import kept_blocks

def pages(rounds=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(1 << 24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

class Mallinfo(ctypes.Structure):
    _fields_ = [(str(place), ctypes.c_size_t) for place in range(10)]

def mapped(size):  # blocks by themselves while a tensor of so many bytes lives
    told = ctypes.CDLL(None).mallinfo2
    told.restype, told.argtypes = Mallinfo, []
    before = getattr(told(), "3")
    block = torch.empty(size, dtype=torch.uint8)
    return getattr(told(), "3") - before

pages(1)
usual, before = pages(), held()
with kept_blocks():
    with kept_blocks():
        pages(16)
    kept, meanwhile, inside = pages(), held(), mapped(1 << 26)
print(usual, kept, meanwhile - before, held() - before, inside, mapped(1 << 31))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_pages_are_used_again_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    usual, kept, meanwhile, after, inside, later = map(int, done.stdout.split())
    block = (1 << 26) // resource.getpagesize()
    assert usual >= 4 * block
    assert kept < block / 10
    assert meanwhile >= 1 << 25
    assert after < 1 << 24
    assert (inside, later) == (0, 1)  # by itself again: no gap in the heap is as large
