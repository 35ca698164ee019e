# SPDX-License-Identifier: Apache-2.0
"""Adapters give the teacher's shape whatever the student's is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rarefy.distill.adapters import Adapter, channel_axis
from rarefy.errors import ModelError

sides = st.integers(1, 6)


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.tuples(sides, sides), max_size=3))
def test_any_shape_is_reached(C: int, D: int, space: list[tuple[int, int]]) -> None:
    mine, theirs = (2, C, *(a for a, _ in space)), (2, D, *(b for _, b in space))
    assert tuple(Adapter(mine, theirs)(torch.randn(mine)).shape) == theirs
    always = Adapter(mine, theirs, channels="always")
    assert tuple(always(torch.randn(mine)).shape) == theirs
    assert any(True for _ in always.parameters())


def test_equal_shapes_are_left_alone() -> None:
    x = torch.randn(2, 5, 4, 4)
    same = Adapter(x.shape, x.shape)
    assert isinstance(same.channels, nn.Identity)
    assert torch.equal(same(x), x)
    spread = Adapter(x.shape, (2, 9, 8, 8), channels="never")
    assert tuple(spread(x).shape) == (2, 5, 8, 8)


def test_where_channels_stand() -> None:
    assert channel_axis((2, 7), (2, 9)) == 1
    assert channel_axis((2, 8, 16), (2, 8, 32)) == 2  # tokens
    assert channel_axis((2, 8, 16), (2, 4, 16)) == 1  # a signal of 16 steps
    assert channel_axis((2, 8, 4, 4), (2, 4, 4, 4)) == 1


def test_other_numbers_of_axes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"shape \(2, 5\) can't be compared .* \(2, 5, 4, 4\)"):
        Adapter((2, 5), (2, 5, 4, 4))
