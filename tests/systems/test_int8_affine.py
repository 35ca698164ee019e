# SPDX-License-Identifier: Apache-2.0
"""Row int8-affine: every code survives the round trip, the narrow range has no -128, zero is exact."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes
from rarefy.measure.quality import evaluate
from rarefy.quantize.int8_weights import weight_scale
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context

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


def sum_in_pairs(x, w):
    """What AVX2 without VNNI computes: products of uint8 and int8 added in pairs that saturate at 16 bits."""
    products = (x.long() * w.long()).view(-1, 2).sum(1)
    return int(products.clamp(-(2**15), 2**15 - 1).sum())


def test_seven_bits_avoid_the_saturation_that_eight_bits_meet():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, 576, generator=generator) / 24
    x = (torch.randn(576, generator=generator).abs() * 90).clamp(0, 255).to(torch.uint8)
    brightest = torch.full((576,), 255, dtype=torch.uint8)
    for bits, saturates in ((8, True), (7, False)):
        grid = Grid(bits, narrow=True)
        scale = weight_scale(w, grid, 0, "minmax")
        codes = to_codes(w, scale, torch.zeros(64, dtype=torch.int8), grid, 0)
        for activations in (x, brightest):
            exact = [int((activations.long() * row.long()).sum()) for row in codes]
            found = [sum_in_pairs(activations, row) for row in codes]
            assert (found != exact) == saturates


def test_seven_bit_weights_keep_the_accuracy_of_digits(digits):
    model, task = digits
    before = evaluate(model, task).value
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    found = StaticInt8(bits=7).apply(model, context)
    assert evaluate(found, task).value >= before - 0.01
