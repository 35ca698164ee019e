# SPDX-License-Identifier: Apache-2.0
"""Peak memory sees what a call allocates and not what was there before."""

from pathlib import Path

import pytest
import torch

from rarefy.measure import memory
from rarefy.measure.memory import peak_memory, resident_bytes

MEGABYTE = 2**20
X = torch.zeros(1)


def test_a_peak_that_is_gone_at_the_end_is_seen() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        large = torch.ones(64 * MEGABYTE // 4)
        for _ in range(20):
            large.add_(1)  # long enough to be looked at
        return large.sum()

    found = peak_memory(call, X)
    assert 60 * MEGABYTE <= found <= 100 * MEGABYTE


def test_what_was_there_before_is_not_counted() -> None:
    held = torch.ones(64 * MEGABYTE // 4)
    assert peak_memory(lambda x: held.sum(), X) < 16 * MEGABYTE


def test_an_error_of_the_call_comes_through_and_the_watcher_ends() -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda x: 1 / 0, X)
    assert threading.active_count() == before


def test_without_proc_the_highest_level_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = resident_bytes()
    monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
    assert resident_bytes() >= level // 2 > MEGABYTE
