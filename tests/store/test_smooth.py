# SPDX-License-Identifier: Apache-2.0
"""Smooth sequences: exact, at the stated cost, runs of zeros next to free."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.smooth import LARGEST, read_smooth, smooth

SEQUENCES = st.lists(
    st.tuples(st.integers(0, 20) | st.integers(0, LARGEST - 1), st.integers(1, 60)),
    min_size=1,
    max_size=20,
)


@given(SEQUENCES)
def test_sequences_come_back_at_the_stated_cost(pairs: list[tuple[int, int]]) -> None:
    values = np.repeat(*np.array(pairs).T)
    writer = BitWriter()
    smooth(values).write(writer)
    data = writer.to_bytes()
    assert np.array_equal(read_smooth(BitReader(Cursor(data)), values.size), values)
    assert len(data) == -(-int(smooth(values).bits) // 8)


def test_runs_cost_a_few_bits() -> None:
    values = np.zeros(1000, dtype=np.int64)
    values[[0, 500, 999]] = 3
    assert smooth(values).bits < 100
    assert smooth(np.arange(1000) % 2).bits < 1000 * 3 + 8


def test_impossible_sequences_are_refused() -> None:
    def reader(*fields: tuple[str, int, int]) -> BitReader:
        writer = BitWriter()
        for kind, value, size in fields:
            getattr(writer, kind)(*(value, size)[: 1 if kind == "number" else 2])
        return BitReader(Cursor(writer.to_bytes() + bytes(3)))

    plain, runs = ("write", 0, 1), ("write", 1, 1)
    order = ("write", 0, 3)
    with pytest.raises(FileError, match="leaves its range"):
        read_smooth(reader(plain, order, ("golomb", 1, 0)), 1)  # -1
    with pytest.raises(FileError, match="leaves its range"):
        read_smooth(reader(plain, order, ("golomb", 1 << 60, 0)), 1)
    with pytest.raises(FileError, match="no end"):
        read_smooth(reader(plain, order), 40)
    fields = (runs, ("number", 1, 0), order, ("golomb", 0, 0), order, ("golomb", 5, 0))
    with pytest.raises(FileError, match="has 6 entries instead of 9"):
        read_smooth(reader(*fields), 9)
    with pytest.raises(FileError, match="at most 9"):
        read_smooth(reader(runs, ("number", 10, 0)), 9)
