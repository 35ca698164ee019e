# SPDX-License-Identifier: Apache-2.0
"""The relative index: Deep Compression's own example, and fillers in every gap that is too long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.store.relative import relative_index


def test_the_figure_of_the_paper() -> None:
    flat = np.zeros(16)
    flat[[1, 4, 15]] = [3.4, 0.9, 1.7]
    index = relative_index(flat, 3)
    # Differences of positions 1 (counted from 0), 3, 8 (a filler), 3; gaps are one less.
    assert index.gaps.tolist() == [1, 2, 7, 2]
    assert index.values.tolist() == [3.4, 0.9, 0.0, 1.7]
    assert index.nbytes == 4 * 8 + 2


@given(
    st.dictionaries(st.integers(0, 3000), st.integers(1, 99), max_size=40),
    st.integers(0, 500),
    st.integers(1, 10),
)
def test_any_gap_comes_back(entries: dict[int, int], beyond: int, bits: int) -> None:
    flat = np.zeros(max(entries, default=0) + 1 + beyond, dtype=np.int16)
    flat[list(entries)] = list(entries.values())
    index = relative_index(flat, bits)
    assert np.array_equal(index.to_dense(), flat)
    assert not index.gaps.size or index.gaps.max() < 1 << bits
    fillers = index.values == 0
    assert (index.gaps[fillers] == (1 << bits) - 1).all()
    assert index.values.size - fillers.sum() == len(entries)
    assert index.nbytes == 2 * index.values.size + -(-index.values.size * bits // 8)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_runs_longer_than_the_limit_are_filled_up(bits: int) -> None:
    span = 1 << bits
    for gap in (span - 1, span, span + 1, 2 * span - 1, 2 * span, 7 * span + 3):
        flat = np.zeros(gap + 1)
        flat[gap] = 1
        assert relative_index(flat, bits).gaps.size == gap // span + 1
