# SPDX-License-Identifier: Apache-2.0
"""Streaming statistics against the same numbers computed at once, for any split of the data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import ModelError
from rarefy.loops.histogram import Histogram, least_exponent
from rarefy.loops.statistics import ChannelMoments, Range, SecondMoment

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
parts_of_numbers = st.lists(st.lists(numbers, max_size=12), min_size=1, max_size=5)


def test_second_moment() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    whole, left, right = SecondMoment(), SecondMoment(), SecondMoment()
    whole.update(x)
    for part in x[:20].split(7):
        left.update(part)
    right.update(x[20:])
    left.merge(right).merge(SecondMoment())
    assert left.count == 50
    expected = (x.double().T @ x.double()) / 50
    torch.testing.assert_close(left.mean(), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.mean(), expected, rtol=1e-14, atol=0)
    assert whole.mean().dtype == torch.float64
    grouped = SecondMoment(torch.float32)
    grouped.update(torch.stack([x, 2 * x]))
    torch.testing.assert_close(grouped.mean()[1], 4 * expected.float(), rtol=1e-5, atol=1e-6)
    empty = SecondMoment().merge(right)
    assert empty.total is not right.total
    with pytest.raises(ModelError, match="never run"):
        SecondMoment().mean()


@given(parts_of_numbers)
@settings(deadline=None)
def test_range(parts: list[list[float]]) -> None:
    merged = Range()
    for part in parts:
        one = Range()
        one.update(torch.tensor(part))
        merged.merge(one)
    everything = [v for part in parts for v in part]
    assert float(merged.low) == min(everything, default=np.inf)
    assert float(merged.high) == max(everything, default=-np.inf)


def test_range_of_channels() -> None:
    x = torch.randn(3, 4, 5)
    found = Range(axis=1)
    found.update(x[:1])
    found.update(x[1:])
    assert torch.equal(found.low, x.amin((0, 2)))
    assert torch.equal(found.high, x.amax((0, 2)))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.floats(-1e7, 1e7))
@settings(deadline=None)
def test_channel_moments_survive_a_mean_far_from_zero(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(n, 3, 2, generator=generator).double() + offset for n in sizes]
    merged = ChannelMoments()
    for part in parts:
        one = ChannelMoments()
        one.update(part)
        merged.merge(one)
    whole = torch.cat(parts).movedim(1, 0).flatten(1)
    assert merged.count == whole.shape[1]
    if merged.count:
        torch.testing.assert_close(merged.mean, whole.mean(1))
        expected = whole.var(1, correction=0)
        torch.testing.assert_close(merged.variance(), expected, rtol=1e-6, atol=1e-9)


@given(parts_of_numbers, st.integers(2, 40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_histograms_merge_exactly(parts, bins, random) -> None:  # type: ignore[no-untyped-def]
    everything = torch.tensor([v for part in parts for v in part], dtype=torch.float64)
    whole = Histogram(bins)
    whole.update(everything)
    shuffled = parts.copy()
    random.shuffle(shuffled)
    merged = Histogram(bins)
    for part in shuffled:
        one = Histogram(bins)
        for value in part:
            one.update(torch.tensor([value]))
        merged.merge(one)
    assert merged.exponent == whole.exponent or not len(everything)
    assert torch.equal(merged.counts, whole.counts)
    assert torch.equal(merged.edges(), whole.edges())
    assert whole.total() == len(everything)
    assert len(whole.counts) <= bins
    if len(everything):
        expected, _ = np.histogram(everything.numpy(), whole.edges().numpy())
        expected[-1] -= int((everything == whole.edges()[-1]).sum())  # numpy closes the last bin
        assert whole.counts.tolist() == expected.tolist()


@given(st.floats(-1e30, 1e30), st.floats(0, 1e30), st.integers(2, 4096))
def test_the_exponent_is_the_least_that_fits(low: float, width: float, bins: int) -> None:
    high = low + width

    def cells(e: int) -> int:
        return int(np.floor(np.ldexp(high, -e)) - np.floor(np.ldexp(low, -e))) + 1

    e = least_exponent(low, high, bins)
    assert cells(e) <= bins
    largest = max(abs(low), abs(high))
    finest = np.frexp(largest)[1] - 40 if largest else -900
    assert e == max(finest, -900) or cells(e - 1) > bins


def test_quantiles() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    found = Histogram(2048)
    for part in x.split(777):
        found.update(part)
    bin_width = 2.0**found.exponent
    for share in (0.0, 0.001, 0.3, 0.5, 0.999, 1.0):
        assert abs(found.quantile(share) - float(torch.quantile(x, share))) <= bin_width
    assert found.quantile(0.0) == float(x.min())
    assert found.quantile(1.0) == float(x.max())
    same = Histogram(4)
    same.update(torch.full((3,), 2.5))
    assert same.quantile(0.5) == 2.5


def test_what_has_no_histogram() -> None:
    with pytest.raises(ModelError, match="NaN or infinite"):
        Histogram().update(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ModelError, match="8 and 4 bins"):
        Histogram(8).merge(Histogram(4))
    with pytest.raises(ModelError, match="no value"):
        Histogram().quantile(0.5)
    with pytest.raises(ModelError, match="not 1"):
        Histogram(1)
