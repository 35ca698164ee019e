# SPDX-License-Identifier: Apache-2.0
"""Schedules: exact ends, no way back, and the papers' formulas."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.prune.schedule import SCHEDULES, cubic, geometric, linear, one_shot

shares = st.floats(0, 1)


@pytest.mark.parametrize("name", SCHEDULES)
@given(ends=st.tuples(shares, shares), progress=st.lists(shares, min_size=2, max_size=5))
def test_exact_ends_and_monotone(
    name: str, ends: tuple[float, float], progress: list[float]
) -> None:
    start, end = sorted(ends)
    schedule = SCHEDULES[name]
    assert schedule(0.0, end, start) == start
    assert schedule(1.0, end, start) == end
    values = [schedule(p, end, start) for p in sorted(progress)]
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(values))
    assert all(start - 1e-15 <= v <= end + 1e-15 for v in values)


def test_formulas() -> None:
    assert linear(0.25, 0.8, 0.4) == pytest.approx(0.5)
    # every round keeps the same share of what is left
    kept = [1 - geometric(k / 5, 0.9) for k in range(6)]
    ratios = [b / a for a, b in itertools.pairwise(kept)]
    assert ratios == pytest.approx([0.1 ** (1 / 5)] * 5)
    assert geometric(0.4, 0.9) == pytest.approx(1 - (1 - 0.9) ** (2 / 5))
    # s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3
    assert cubic(3 / 10, 0.9, 0.1) == pytest.approx(0.9 + (0.1 - 0.9) * 0.7**3)
    assert one_shot(0.01, 0.9) == 0.9
