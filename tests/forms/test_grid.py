# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of uniform quantisation against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.grid import Grid, along, from_codes, grid_for_range, to_codes

GRIDS = [
    Grid(bits, signed, symmetric, narrow)
    for bits in (2, 5, 8)
    for signed in (True, False)
    for symmetric in (True, False)
    for narrow in (True, False)
    if not (narrow and not signed)
]


@pytest.mark.parametrize(
    ("grid", "ends"),
    [
        (Grid(), (-128, 127)),
        (Grid(narrow=True), (-127, 127)),
        (Grid(signed=False), (0, 255)),
        (Grid(2), (-2, 1)),
        (Grid(4, signed=False), (0, 15)),
    ],
)
def test_codes_of_a_grid(grid: Grid, ends: tuple[int, int]) -> None:
    assert (grid.low, grid.high) == ends
    assert grid.dtype == (torch.int8 if grid.signed else torch.uint8)


@given(
    st.sampled_from(GRIDS),
    st.floats(-1e4, 1e4, width=32),
    st.floats(-1e4, 1e4, width=32),
)
def test_zero_is_exact_and_the_range_is_covered(grid: Grid, a: float, b: float) -> None:
    low, high = torch.tensor(min(a, b)).double(), torch.tensor(max(a, b)).double()
    scale, zero_point = grid_for_range(low, high, grid)
    assert (
        float(from_codes(to_codes(torch.zeros(1), scale, zero_point, grid), scale, zero_point)) == 0
    )
    ends = torch.stack([low.clamp(max=0), high.clamp(min=0)]).float()
    back = from_codes(to_codes(ends, scale, zero_point, grid), scale, zero_point)
    # ties of the rounding of the zero point cost at most one more half step
    assert bool(
        ((back - ends).abs() <= scale * (0.5 if grid.symmetric else 1.0) * (1 + 1e-4)).all()
    )


def test_an_empty_range_has_scale_one() -> None:
    zero = torch.zeros(3)
    scale, zero_point = grid_for_range(zero, zero, Grid())
    assert scale.tolist() == [1, 1, 1]
    assert zero_point.tolist() == [0, 0, 0]


@given(st.sampled_from(GRIDS), st.integers(0, 2**32 - 1))
def test_codes_round_trip_and_agree_with_numpy(grid: Grid, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(3, 4, 5)).astype(np.float32)
    low, high = torch.from_numpy(x).amin((0, 2)), torch.from_numpy(x).amax((0, 2))
    scale, zero_point = grid_for_range(low, high, grid)
    codes = to_codes(torch.from_numpy(x), scale, zero_point, grid, axis=1)
    s, z = scale.numpy()[None, :, None], zero_point.numpy()[None, :, None].astype(np.int32)
    expected = np.clip(np.rint(x / s) + z, grid.low, grid.high)
    assert np.array_equal(codes.numpy(), expected)
    values = from_codes(codes, scale, zero_point, axis=1)
    assert np.allclose(values.numpy(), (expected - z) * s)
    assert torch.equal(to_codes(values, scale, zero_point, grid, axis=1), codes)


def test_along_broadcasts_over_one_axis() -> None:
    values = torch.tensor([1.0, 2.0])
    assert along(values, 2, 4).shape == (1, 1, 2, 1)
    assert along(values, None, 4) is values
    assert along(torch.tensor(3.0), 1, 4).shape == ()
