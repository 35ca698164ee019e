# SPDX-License-Identifier: Apache-2.0
"""Scales: what they measure, that they come back, that damage is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import Cursor
from rarefy.store.scales import (
    Scales,
    choices,
    flat,
    grid_shape,
    magnitude_scales,
    read_scales,
    write_scales,
)

AXIS = st.lists(st.integers(-20, 20), min_size=1, max_size=30)


def test_scales_are_half_octaves_of_the_mean() -> None:
    sizes = np.ones((4, 8, 9), dtype=np.int64) * 16
    sizes[2] *= 4
    rows = magnitude_scales(sizes).rows
    assert rows[2] - rows[0] == 4  # four times as large: two octaves
    assert not magnitude_scales(sizes).columns.any()


def test_a_piece_sums_the_three_axes() -> None:
    scales = Scales(*(np.array(axis, dtype=np.int8) for axis in ([1, 2], [10, 20, 30], [0, 5])))
    assert scales.piece(1, 2).tolist() == [12, 17, 22, 27, 32, 37]


def test_shapes() -> None:
    assert grid_shape((8, 4, 3, 3)) == (8, 4, 9)
    assert grid_shape(()) == (1, 1, 1)
    assert grid_shape((0, 4)) == (0, 4, 1)


def test_axes_that_say_nothing_are_no_choice() -> None:
    rows = Scales(np.array([0, 3], np.int8), *flat((2, 5, 1))[1:])
    assert [bool(choice.columns.any()) for choice in choices(rows)] == [False, False]


@given(rows=AXIS, columns=AXIS, positions=AXIS)
def test_round_trip(rows: list[int], columns: list[int], positions: list[int]) -> None:
    scales = Scales(*(np.array(axis, dtype=np.int8) for axis in (rows, columns, positions)))
    cursor = Cursor(write_scales(scales, "auto") + b"rest")
    shape = (len(rows), len(columns), len(positions))
    back = read_scales(cursor, shape)
    assert all(np.array_equal(a, b) for a, b in zip(back, scales, strict=True))
    assert cursor.remaining == 4


@given(data=st.binary(max_size=40))
def test_damage_ends_in_one_error_or_in_scales_that_fit(data: bytes) -> None:
    try:
        scales = read_scales(Cursor(data), (5, 3, 2))
    except FileError:
        return
    assert np.abs(scales.piece(0, 5)).max() <= 127
    assert scales.piece(0, 5).astype(int).tolist() == [
        int(a) + int(b) + int(c)
        for a in scales.rows
        for b in scales.columns
        for c in scales.positions
    ]


def test_flat_scales_take_a_byte() -> None:
    assert len(write_scales(flat((100, 100, 9)), "auto")) == 1
    with pytest.raises(FileError):
        read_scales(Cursor(b""), (1, 1, 1))
