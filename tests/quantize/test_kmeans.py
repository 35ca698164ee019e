# SPDX-License-Identifier: Apache-2.0
"""k-means on the line against brute force, against itself, and against its own definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.quantize import kmeans
from rarefy.quantize.kmeans import (
    cluster,
    codebook_bytes,
    line_of,
    lloyd,
    nearest_codes,
    optimal_levels,
    start_levels,
)

STARTS = ("linear", "random", "density", "exact")


def squared_error(x: np.ndarray, levels: np.ndarray) -> float:
    return float(((x - levels[nearest_codes(x, levels)]) ** 2).sum())


def least_error(x: np.ndarray, k: int) -> float:
    """The least squared error over all ways to cut the sorted values into k runs."""
    x = np.sort(x)
    cuts = itertools.combinations(range(1, len(x)), k - 1)
    return min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(x, list(cut)))
        for cut in cuts
    )


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.integers(1, 5), st.floats(-1e3, 1e3)
)
def test_the_optimum_is_that_of_brute_force(numbers: list[int], k: int, shift: float) -> None:
    x = np.array(numbers) / 4 + shift
    levels = optimal_levels(x, k)
    if k >= len(np.unique(x)):
        assert squared_error(x, levels) == 0
        return
    assert len(levels) == k
    assert squared_error(x, levels) == pytest.approx(least_error(x, k), abs=1e-6)


def test_grouped_values_come_within_a_percent_of_the_optimum(monkeypatch) -> None:
    x = np.random.default_rng(0).standard_t(4, 3000)
    best = [squared_error(x, optimal_levels(x, k)) for k in (4, 16, 32)]
    monkeypatch.setattr(kmeans, "GROUPS", 600)
    for k, error in zip((4, 16, 32), best, strict=True):
        assert error <= squared_error(x, optimal_levels(x, k)) <= 1.01 * error


@pytest.mark.parametrize("start", STARTS)
def test_the_error_of_lloyd_never_rises_and_ends_at_a_fixed_point(start) -> None:
    x = np.random.default_rng(1).normal(size=2000)
    line = line_of(x)
    levels, errors = lloyd(line, start_levels(line, 12, start))
    assert (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert errors[-1] == pytest.approx(squared_error(x, levels))
    means = [x[nearest_codes(x, levels) == i].mean() for i in range(len(levels))]
    assert levels == pytest.approx(means)


def test_no_start_beats_the_optimum() -> None:
    x = np.random.default_rng(2).normal(size=1500)
    best = squared_error(x, optimal_levels(x, 9))
    for start in ("linear", "random", "density"):
        assert squared_error(x, cluster(x, 9, start)) >= best * (1 - 1e-9)


def test_starts_are_what_they_are_called() -> None:
    x = np.random.default_rng(3).exponential(size=1000)
    line = line_of(x)
    assert start_levels(line, 5, "linear") == pytest.approx(np.linspace(x.min(), x.max(), 5))
    counts = np.histogram(x, np.concatenate([[0], start_levels(line, 4, "density"), [1e9]]))[0]
    assert counts.tolist() == [125, 250, 250, 250, 125]
    assert np.isin(start_levels(line, 7, "random").round(9), x.round(9)).all()
    assert not np.array_equal(
        start_levels(line, 7, "random", seed=0), start_levels(line, 7, "random", seed=1)
    )


@pytest.mark.parametrize("start", STARTS)
def test_few_distinct_values_are_kept_exactly(start) -> None:
    distinct = np.random.default_rng(4).normal(size=256).astype(np.float32)
    x = np.tile(distinct, 9)
    levels = cluster(x, 256, start).astype(np.float32)
    assert np.array_equal(levels[nearest_codes(x, levels)], x)


def test_constant_values_have_one_level() -> None:
    assert cluster(np.full(50, 0.3), 8).tolist() == [0.3]


def test_decoding_and_coding_again_changes_nothing() -> None:
    x = np.random.default_rng(5).normal(size=1000)
    levels = cluster(x, 16, "density")
    codes = nearest_codes(x, levels)
    assert np.array_equal(nearest_codes(levels[codes], levels), codes)


def test_bytes_of_a_codebook() -> None:
    assert codebook_bytes(1000, 16) == 1000 * 4 / 8 + 64
    assert codebook_bytes(8, 256) == 8 + 1024
