# SPDX-License-Identifier: Apache-2.0
"""Threads are those of torch, within what the process may use."""

import os
from pathlib import Path

import pytest
import torch

from rarefy.export import threads


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("max 100000", 8), ("nonsense", 8), (None, 8)],
)
def test_cores_are_limited_by_affinity_and_by_a_quota(
    text: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text + "\n")
    monkeypatch.setattr(threads, "QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert threads.available_cores() == cores


def test_default_threads_are_those_of_torch_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    assert threads.default_threads() == 4
    monkeypatch.setattr(threads, "available_cores", lambda: 64)
    assert threads.default_threads() == 6
