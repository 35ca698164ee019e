# SPDX-License-Identifier: Apache-2.0
"""Compressing without training needs less than three times the model's memory, the model included.

What counts is anonymous memory, which the kernel can't drop; pages of mapped files are no part of it. A
process of its own loads all libraries by compressing a tiny network first, and its C library gives back at
once what is freed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "memory.py"
ALLOWANCE = 16 * 2**20  # what libraries take for themselves whatever the model's size

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from /proc"
)


def test_peak_stays_below_three_models() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", "--exact", "small pruned int8"],
        check=True,
        capture_output=True,
        text=True,
    )
    (case,) = json.loads(done.stdout)
    assert case["stages"] == 4
    assert case["bytes"] > 40e6
    peak = max(row["anonymous"] for row in case["phases"]) * case["bytes"]
    assert case["bytes"] < peak < 3 * case["bytes"] + ALLOWANCE
