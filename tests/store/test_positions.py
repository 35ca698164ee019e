# SPDX-License-Identifier: Apache-2.0
"""Positions of non-zeros: gaps of any length and bitmaps, exact and near the entropy."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import Cursor, varint
from rarefy.store.positions import BitmapReader, GapReader, plan_bitmap, plan_gaps


def joined(pieces: Iterable[np.ndarray]) -> list[int]:
    return np.concatenate(list(pieces)).tolist()


@given(st.sets(st.integers(0, 20_000), min_size=1, max_size=80), st.integers(1, 5000))
def test_gaps_and_bitmaps_come_back(places: set[int], beyond: int) -> None:
    ordered = np.array(sorted(places))
    size = int(ordered[-1]) + beyond
    data = plan_gaps(ordered, "auto").encode()
    assert joined(GapReader(Cursor(data), size, ordered.size).pieces()) == ordered.tolist()
    data = plan_bitmap(ordered, size, "auto").encode()
    assert joined(BitmapReader(Cursor(data), size, ordered.size).pieces()) == ordered.tolist()


@pytest.mark.parametrize("gap", [14, 15, 16, 62, 63, 64, 255, 1023, 4095, 4096, 100_000, 3_000_000])
def test_runs_longer_than_any_limit(gap: int) -> None:
    places = np.array([0, 1, 2, 3 + gap, 4 + 2 * gap])
    data = plan_gaps(places, "ans").encode()
    reader = GapReader(Cursor(data), int(places[-1]) + 1, places.size)
    assert joined(reader.pieces()) == places.tolist()


@pytest.mark.parametrize("share", [0.003, 0.08, 0.4])
def test_independent_positions_take_their_entropy(share: float) -> None:
    marks = np.random.default_rng(1).random(300_000) < share
    real = marks.mean()
    bound = -(real * np.log2(real) + (1 - real) * np.log2(1 - real)) * marks.size / 8
    places = np.flatnonzero(marks)
    for plan in (plan_gaps(places, "auto"), plan_bitmap(places, marks.size, "auto")):
        data = plan.encode()
        assert len(data) < 1.005 * bound + 16
        assert len(data) == pytest.approx(plan.bits / 8, abs=10)


def test_huffman_gaps_come_back() -> None:
    places = np.flatnonzero(np.random.default_rng(1).random(200_000) < 0.1)
    data = plan_gaps(places, "huffman").encode()
    assert joined(GapReader(Cursor(data), 200_000, places.size).pieces()) == places.tolist()


def test_positions_outside_the_tensor_are_refused() -> None:
    places = np.array([3, 500, 999])
    gaps, bitmap = plan_gaps(places, "auto").encode(), plan_bitmap(places, 1000, "auto").encode()
    with pytest.raises(FileError, match="of 900"):
        joined(GapReader(Cursor(gaps), 900, 3).pieces())
    for count in (2, 4):
        with pytest.raises(FileError, match="marks"):
            joined(BitmapReader(Cursor(bitmap), 1000, count).pieces())
    with pytest.raises(FileError, match="at most"):
        GapReader(Cursor(varint(0) + varint(1 << 40)), 1000, 3)
