# SPDX-License-Identifier: Apache-2.0
"""Frequency tables: small, exact to read back, and close to the counts that they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.frequencies import (
    TOTAL_BITS,
    bernoulli,
    counted,
    geometric,
    information,
    read_counted,
    rounded_codes,
    rounded_counts,
    scaled,
)
from rarefy.store.smooth import smooth


@given(st.lists(st.integers(0, 1 << 39), min_size=1, max_size=50), st.integers(0, 5))
def test_rounding_keeps_order_and_precision(counts: list[int], mantissa: int) -> None:
    values = np.array(sorted(counts))
    codes = rounded_codes(values, mantissa)
    back = rounded_counts(codes, mantissa)
    assert (np.diff(codes) >= 0).all()
    assert np.array_equal(rounded_codes(back, mantissa), codes)
    assert (np.abs(back - values) <= values / 2 ** (mantissa + 1)).all()
    assert np.array_equal(back == 0, values == 0)


@given(st.lists(st.integers(0, 1 << 20), min_size=0, max_size=300), st.integers(1, 1 << 20))
def test_counted_tables_come_back_at_the_stated_cost(middle: list[int], end: int) -> None:
    counts = np.array([end, *middle, end])
    table = counted(counts)
    writer = BitWriter()
    table.write(writer)
    data = writer.to_bytes()
    assert np.array_equal(read_counted(BitReader(Cursor(data)), counts.size), table.frequencies)
    stated = table.bits - information(counts, table.frequencies)
    assert 8 * len(data) - 8 < stated + 1e-6 <= 8 * len(data) + 2e-6
    assert (table.frequencies >= 1).all()
    assert table.frequencies.sum() < 1 << TOTAL_BITS + 1


def test_a_smooth_histogram_costs_little_more_than_its_entropy() -> None:
    grid = np.arange(255) - 127
    counts = np.maximum(np.rint(1e6 * np.exp(-(grid**2) / 2 / 30**2) / 75), 1).astype(np.int64)
    share = counts / counts.sum()
    entropy = -(share * np.log2(share)).sum() * counts.sum()
    table = counted(counts)
    assert entropy < table.bits < 1.001 * entropy
    assert table.bits - information(counts, table.frequencies) < 8 * 160


@given(st.integers(1, 65535), st.integers(2, 300))
def test_geometric_tables_follow_the_law(parameter: int, symbols: int) -> None:
    table = geometric(parameter, symbols) / (1 << TOTAL_BITS)
    chance = parameter / 65536
    law = chance * (1 - chance) ** np.arange(symbols)
    law[-1] = (1 - chance) ** (symbols - 1)
    assert np.allclose(table, law, atol=symbols * 2.0**-TOTAL_BITS)


@given(st.integers(1, 65535), st.sampled_from([1, 2, 4, 8]))
def test_bernoulli_tables_follow_the_law(parameter: int, width: int) -> None:
    table = bernoulli(parameter, width) / (1 << TOTAL_BITS)
    chance = parameter / 65536
    ones = np.array([number.bit_count() for number in range(1 << width)])
    assert np.allclose(table, chance**ones * (1 - chance) ** (width - ones), atol=2.0**-21)


def test_huge_counts_are_scaled_without_overflow() -> None:
    table = scaled(np.array([1 << 39, 1, 1 << 39] * 100))
    assert table.min() == 1
    assert abs(int(table.sum()) - (1 << TOTAL_BITS)) < 300


def test_impossible_tables_are_refused() -> None:
    writer = BitWriter()
    writer.write(0, 3)
    smooth(np.array([50])).write(writer)  # 2**49 as a count
    with pytest.raises(FileError, match=r"above 2\*\*40"):
        read_counted(BitReader(Cursor(writer.to_bytes())), 1)
