# SPDX-License-Identifier: Apache-2.0
"""Budgets are kept; dynamic programming finds what trying everything finds."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.factorize.allocate import exact, greedy

OPTION = st.tuples(st.integers(1, 40), st.floats(0, 10, allow_nan=False))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4)


def brute(layers: list[list[tuple[float, float]]], limit: float) -> float | None:
    best = None
    for choice in itertools.product(*layers):
        if sum(cost for cost, _ in choice) <= limit:
            error = sum(error for _, error in choice)
            best = error if best is None else min(best, error)
    return best


@settings(max_examples=150)
@given(layers=LAYERS, limit=st.integers(1, 130))
def test_exact_is_exact(layers: list[list[tuple[float, float]]], limit: int) -> None:
    best = brute(layers, limit)
    found = exact(layers, limit, bins=limit)
    quick = greedy(layers, limit)
    if best is None:
        assert found is None
        assert quick is None
        return
    assert found is not None
    assert quick is not None
    for choice in (found, quick):
        assert sum(o[at][0] for o, at in zip(layers, choice, strict=True)) <= limit
    assert sum(o[at][1] for o, at in zip(layers, found, strict=True)) == pytest.approx(best)
    assert sum(o[at][1] for o, at in zip(layers, quick, strict=True)) >= best - 1e-9


def test_rounding_does_not_break_a_limit_that_can_be_kept() -> None:
    layers = [[(0.5, 0.0), (0.333, 1.0)]] * 3
    assert exact(layers, 1.0, bins=2) == [1, 1, 1]


def test_the_cheap_error_is_taken_first() -> None:
    layers = [[(10, 0.0), (5, 0.1)], [(10, 0.0), (5, 3.0)]]
    assert greedy(layers, 15) == [1, 0]
    assert greedy(layers, 20) == [0, 0]
    assert greedy(layers, 9) is None
