# SPDX-License-Identifier: Apache-2.0
"""Ranges chosen from histograms against the definitions that they claim."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes
from rarefy.loops.histogram import Histogram
from rarefy.quantize.ranges import (
    BINS,
    choose_range,
    clipped_divergences,
    mse_range,
    rounding_error,
)

UINT8 = Grid(8, signed=False, symmetric=False)


def histogram_of(x: torch.Tensor) -> Histogram:
    found = Histogram(BINS)
    for part in x.split(1000):
        found.update(part)
    return found


def true_error(x: torch.Tensor, low: float, high: float, grid: Grid) -> float:
    scale, zero_point = grid_for_range(torch.tensor(low), torch.tensor(high), grid)
    return float(
        (from_codes(to_codes(x, scale, zero_point, grid), scale, zero_point) - x).square().sum()
    )


@pytest.fixture
def tailed() -> torch.Tensor:
    """A bulk of width one with a few far values on the right."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x[:4] = torch.tensor([60.0, 62.0, 61.0, 63.0])
    return x


def test_minmax_is_what_was_seen(tailed) -> None:
    assert choose_range(histogram_of(tailed), "minmax", UINT8) == (float(tailed.min()), 63.0)


def test_percentiles_leave_out_their_share(tailed) -> None:
    low, high = choose_range(histogram_of(tailed), "percentile", UINT8, percentile=99.0)
    width = 128 / BINS
    assert low == pytest.approx(float(tailed.quantile(0.005)), abs=width)
    assert high == pytest.approx(float(tailed.quantile(0.995)), abs=width)


def test_the_error_of_a_range_is_that_of_the_values(tailed) -> None:
    x = tailed[4:]
    lows, highs = torch.tensor([-4.0, -1.0, 0.0]), torch.tensor([4.0, 2.0, 1.5])
    found = rounding_error(histogram_of(x), lows, highs, Grid(4, signed=False, symmetric=False))
    for i in range(3):
        true = true_error(
            x, float(lows[i]), float(highs[i]), Grid(4, signed=False, symmetric=False)
        )
        assert float(found[i]) == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_least_squares_beats_every_other_choice(tailed, bits) -> None:
    grid = Grid(bits, signed=False, symmetric=False)
    for x in (tailed, tailed[4:], tailed.relu(), -tailed.relu(), tailed.abs()):
        histogram = histogram_of(x)
        best = true_error(x, *mse_range(histogram, grid), grid)
        for choice in ("minmax", "percentile", "entropy"):
            assert best <= 1.01 * true_error(x, *choose_range(histogram, choice, grid), grid)


def test_entropy_clips_a_lonely_tail_and_spares_a_flat_distribution(tailed) -> None:
    low, high = choose_range(histogram_of(tailed), "entropy", UINT8)
    assert high < 45
    assert float(tailed.min()) <= low < -2
    flat = torch.linspace(0, 1, 20_000)
    assert choose_range(histogram_of(flat), "entropy", UINT8)[1] > 0.97


def test_divergence_is_nought_where_quantisation_loses_nothing() -> None:
    steps = torch.arange(1.0, 9.0, dtype=torch.float64).repeat_interleave(4)
    found = clipped_divergences(steps, torch.tensor([32, 16]), 8)
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    assert float(found[1]) > 0.1
    assert float(clipped_divergences(steps, torch.tensor([32]), 5)) > 1e-4


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10_000))
def test_divergence_is_that_of_its_definition(end: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.poisson(0.7, 40).astype(float)
    found = float(clipped_divergences(torch.tensor(spread), torch.tensor([end]), levels))
    kept = spread[:end]
    if not kept.sum():
        assert found == np.inf
        return
    p, q = kept.copy(), np.zeros(end)
    p[-1] += spread[end:].sum()
    run = np.arange(end) * levels // end
    for number in range(levels):
        inside = (run == number) & (kept > 0)
        q[inside] = kept[inside].mean() if inside.any() else 0
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    exact = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("choice", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-3])
def test_constants_are_covered(choice, value) -> None:
    low, high = choose_range(histogram_of(torch.full((2000,), value)), choice, UINT8)
    assert true_error(torch.tensor([value]), low, high, UINT8) <= (abs(value) / 100) ** 2
