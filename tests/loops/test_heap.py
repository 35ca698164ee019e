# SPDX-License-Identifier: Apache-2.0
"""Blocks that are freed in a training are taken again without new pages, and given back after it."""

import platform
import resource
import subprocess
import sys

import pytest

COUNT = """
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

def most():  # of three measurements, for the count was once seen to miss some rounds
    return max(pages() for _ in range(3))

pages(1)
usual, before = most(), held()
with kept_blocks():
    pages(16)
    kept, meanwhile = pages(), held()
print(usual, kept, meanwhile - before, held() - before, most())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_pages_are_used_again_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    usual, kept, meanwhile, after, later = map(int, done.stdout.split())
    block = (1 << 26) // resource.getpagesize()
    assert usual >= 4 * block
    assert kept < block / 10
    assert meanwhile >= 1 << 25
    assert after < 1 << 24
    assert later >= 4 * block
