# SPDX-License-Identifier: Apache-2.0
"""Row int8-affine: every code survives the round trip, the narrow range has no -128, zero is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes

GRIDS = [
    Grid(bits, signed, symmetric, narrow)
    for bits in (2, 4, 8)
    for signed in (True, False)
    for symmetric in (True, False)
    for narrow in (True, False)
    if not (bits == 2 and narrow)
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_code_comes_back(grid):
    scale, zero_point = grid_for_range(torch.tensor(-1.7), torch.tensor(2.9), grid)
    codes = torch.arange(grid.low, grid.high + 1).to(grid.dtype)
    values = from_codes(codes, scale, zero_point)
    assert torch.equal(to_codes(values, scale, zero_point, grid), codes)
    assert float(from_codes(zero_point, scale, zero_point)) == 0.0


def test_ends_of_the_ranges():
    assert (Grid(8, True, True, True).low, Grid(8, True, True, True).high) == (-127, 127)
    assert (Grid(8, True).low, Grid(8, True).high) == (-128, 127)
    assert (Grid(8, False).low, Grid(8, False).high) == (0, 255)


@given(st.floats(-50, 0), st.floats(0, 50), st.integers(0, 99))
def test_error_is_at_most_half_a_step_inside_the_range(low, high, seed):
    grid = Grid(8, False, False)
    scale, zero_point = grid_for_range(torch.tensor(low), torch.tensor(high), grid)
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(64, generator=generator)
    back = from_codes(to_codes(x, scale, zero_point, grid), scale, zero_point)
    # the zero point is rounded too, so one end may be cut by half a step more
    assert float((back - x).abs().max()) <= float(scale) * 1.01 + 1e-6


def test_pairs_of_seven_bit_weights_do_not_saturate_sixteen_bit_sums():
    """u8 × s8 pairs are added in 16 bits by AVX2: 255 · 127 · 2 overflows, 255 · 63 · 2 does not."""
    full, reduced = Grid(8, narrow=True).high, Grid(7, narrow=True).high
    assert 2 * 255 * full > 2**15 - 1
    assert 2 * 255 * reduced <= 2**15 - 1
