# SPDX-License-Identifier: Apache-2.0
"""Knees, intervals against SciPy's distribution, and the files of a sweep."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rarefy.search.tradeoff import (
    Point,
    interval,
    knee,
    write_tradeoff,
)


def test_the_knee_is_where_more_bytes_stop_paying() -> None:
    costs = [1, 2, 4, 8, 16, 32]
    assert knee(costs, [0.1, 0.5, 0.9, 0.92, 0.93, 0.94]) == 2
    assert knee([1, 2], [0.1, 0.5]) == 1


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_intervals(values: list[float]) -> None:
    half = interval(values)
    assert half is not None
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    assert half == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * spread, rel=1e-6, abs=1e-12)
    assert interval(values[:1]) is None


def test_files_of_a_sweep(tmp_path: Path) -> None:
    points = [Point(str(s), s, None, None, m, 0.01, 2) for s, m in ((9, 0.5), (5, 0.9), (1, 0.1))]
    page = write_tradeoff(points, tmp_path / "out")
    assert sorted(p.name for p in page.parent.iterdir()) == ["tradeoff.html", "tradeoff.json"]
    found = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert found["pareto_front"] == [2, 1]
    write_tradeoff(points, tmp_path / "out", higher_is_better=False)
    assert json.loads((tmp_path / "out" / "tradeoff.json").read_text())["pareto_front"] == [2]
