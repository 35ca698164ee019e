# SPDX-License-Identifier: Apache-2.0
"""Weights on a grid in the making, integer codes once baked; both compute the same."""

import pytest
import torch
from torch import nn

from rarefy.forms.affine import OnGrid, Quantised
from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import bake, dress, find, forms_of


def gridded(axis: int, grid: Grid) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    w = layer.weight.detach()
    others = [i for i in range(4) if i != axis]
    low, high = (w.amin(others), w.amax(others)) if axis >= 0 else (w.min(), w.max())
    scale, zero_point = grid_for_range(low, high, grid)
    dress(layer, "weight", OnGrid(scale, zero_point, grid, axis))
    return layer


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize(
    "grid", [Grid(8), Grid(4, narrow=True), Grid(8, signed=False, symmetric=False), Grid(3)]
)
def test_baked_codes_compute_what_the_grid_computed(axis: int, grid: Grid) -> None:
    layer = gridded(axis, grid)
    x = torch.randn(2, 3, 6, 6)
    before, weight = layer(x).detach(), layer.weight.detach().clone()
    bake(layer)
    held = layer.parametrizations["weight"].original
    assert held.dtype == grid.dtype
    assert not held.requires_grad
    assert grid.low <= int(held.min()) <= int(held.max()) <= grid.high
    assert torch.allclose(layer.weight, weight, rtol=1e-6, atol=1e-7)
    assert torch.allclose(layer(x), before, atol=1e-5)
    assert isinstance(forms_of(layer)[-1], Quantised)
    again = held.clone()
    bake(layer)
    assert torch.equal(layer.parametrizations["weight"].original, again)


def test_gradient_reaches_the_float_weight() -> None:
    layer = gridded(0, Grid(4))
    layer(torch.randn(2, 3, 5, 5)).square().mean().backward()
    gradient = layer.parametrizations["weight"].original.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_zeros_of_a_mask_stay_zero_on_the_grid() -> None:
    layer = nn.Linear(5, 4)
    keep = torch.rand(4, 5) > 0.5
    set_mask(layer, keep)
    w = layer.weight.detach()
    grid = Grid(8, signed=False, symmetric=False)
    dress(layer, "weight", OnGrid(*grid_for_range(w.amin(1), w.amax(1), grid), grid, 0))
    assert bool((layer.weight[~keep] == 0).all())
    bake(layer)
    assert bool((layer.weight[~keep] == 0).all())


def test_quantised_takes_codes_as_codes_and_floats_as_values() -> None:
    form = Quantised(torch.tensor(0.5), torch.tensor(1, dtype=torch.int8))
    codes = torch.tensor([-3, 1, 7], dtype=torch.int8)
    assert form.right_inverse(codes) is codes
    assert torch.equal(form.right_inverse(form(codes)), codes)
    assert form(codes).tolist() == [-2.0, 0.0, 3.0]


def test_grid_survives_on_the_form() -> None:
    grid = Grid(5, signed=True, symmetric=True, narrow=True)
    found = find(gridded(0, grid), OnGrid)
    assert found is not None
    assert found.grid == grid
