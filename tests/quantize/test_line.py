# SPDX-License-Identifier: Apache-2.0
"""Sums of long and short lines are the same numbers, whether they lie in memory or in a file."""

import numpy as np
import pytest

from rarefy.quantize import line
from rarefy.quantize.line import line_of


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_pieces_and_files_change_no_bit(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    whole = line_of(values)
    monkeypatch.setattr(line, "PIECE", piece)
    monkeypatch.setattr(line, "LARGE", 10)
    found = line_of(values)
    assert isinstance(found.x, np.memmap)
    assert found.mean == whole.mean
    for name in ("x", "count", "total", "square"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))


def test_sums_are_those_of_sorted_values_around_their_mean() -> None:
    found = line_of(np.array([4.0, 1.0, 1.0]))
    assert found.mean == 2.0
    assert found.x.tolist() == [-1.0, -1.0, 2.0]
    assert found.count.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found.total.tolist() == [0.0, -1.0, -2.0, 0.0]
    assert found.square.tolist() == [0.0, 1.0, 2.0, 6.0]
