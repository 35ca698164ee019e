# SPDX-License-Identifier: Apache-2.0
"""A bad value is found wherever it stands."""

import pytest
import torch

from rarefy.loops.finite import PIECE, all_finite


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, PIECE - 1, PIECE, 2 * PIECE])
def test_one_bad_value_is_found(bad: float, place: int) -> None:
    values = torch.randn(2 * PIECE + 1)
    assert all_finite(values)
    values[place] = bad
    assert not all_finite(values)


def test_integers_and_nothing_are_finite() -> None:
    assert all_finite(torch.arange(5))
    assert all_finite(torch.zeros(0))
