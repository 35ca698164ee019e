# SPDX-License-Identifier: Apache-2.0
"""Blocks that are freed in a training are taken again without new pages, and given back after it."""

import os
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

def mapped(size, count=1):  # blocks by themselves while tensors of so many bytes live
    told = ctypes.CDLL(None).mallinfo2
    told.restype, told.argtypes = Mallinfo, []
    before = getattr(told(), "3")
    blocks = [torch.empty(size, dtype=torch.uint8) for _ in range(count)]
    return getattr(told(), "3") - before

pages(1)
usual, before = pages(), held()
with kept_blocks():
    with kept_blocks():
        pages(16)
    kept, meanwhile, inside = pages(), held(), mapped(1 << 26)
print(usual, kept, meanwhile - before, held() - before, inside, mapped(1 << 31), mapped(1 << 23, 64))
"""


pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone"
)


def counted(**setting: str) -> list[int]:
    command, environment = [sys.executable, "-c", COUNT], {**os.environ, **setting}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [int(number) for number in done.stdout.split()]


def test_pages_are_used_again_and_given_back() -> None:
    usual, kept, meanwhile, after, inside, later, smaller = counted()
    block = (1 << 26) // resource.getpagesize()
    assert usual >= 4 * block
    assert kept < block / 10
    assert meanwhile >= 1 << 25
    assert after < 1 << 24
    assert (inside, later) == (0, 1)  # by itself again: no gap in the heap is as large
    assert smaller == 0  # as glibc has it in a process that has freed large blocks


@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_MMAP_THRESHOLD_": "262144"},
        {"GLIBC_TUNABLES": "glibc.malloc.perturb=0:glibc.malloc.mmap_threshold=262144"},
    ],
)
def test_what_the_environment_set_holds_again(setting: dict[str, str]) -> None:
    *_, inside, later, smaller = counted(**setting)
    assert (inside, later) == (0, 1)
    assert smaller > 0  # gaps in the heap take the first ones
