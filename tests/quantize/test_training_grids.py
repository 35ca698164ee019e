# SPDX-License-Identifier: Apache-2.0
"""Weights on grids in the making: what follows them, what learns, what keeps pairs within 16 bits."""

import copy

import pytest
import torch
from torch import nn

from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.mask import set_mask
from rarefy.forms.pairs import overflows
from rarefy.forms.shadow import dress
from rarefy.quantize.training_grids import (
    FollowingGrid,
    TrainedGrid,
    TrainedWeight,
    below_grid,
    grid_of,
)
from rarefy.select import Layer


def test_a_weight_follows_its_largest_value() -> None:
    torch.manual_seed(0)
    layer, grid = nn.Linear(10, 4), Grid(4)
    w = layer.weight.detach().clone()
    dress(layer, "weight", FollowingGrid(grid, 0))
    scale = w.abs().amax(1, keepdim=True) / 7
    assert torch.allclose(layer.weight, (w / scale).round() * scale, atol=1e-6)
    layer.weight.sum().backward()
    assert torch.all(layer.parametrizations.weight.original.grad == 1)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3)
    assert torch.allclose(layer.weight, (w / scale).round() * scale * 3, atol=1e-5)


def test_a_weight_with_learned_steps_trains_both() -> None:
    torch.manual_seed(0)
    layer, grid = nn.Linear(10, 4), Grid(3)
    scale, _ = grid_for_range(*(torch.tensor([v] * 4) for v in (-0.1, 0.1)), grid)
    form = TrainedGrid(scale, grid, 0)
    dress(layer, "weight", form)
    assert all(len(row.unique()) <= 8 for row in layer.weight)
    layer.weight.square().sum().backward()
    assert form.scale.grad.shape == (4,)
    assert bool((form.scale.grad != 0).all())
    form.frozen, form.scale.grad = True, None
    layer.weight.square().sum().backward()
    assert form.scale.grad is None


@pytest.mark.parametrize("kind", [FollowingGrid, TrainedGrid])
def test_pairs_of_large_codes_give_way(kind: type[TrainedWeight]) -> None:
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.uniform_(0.9, 1.0, generator=torch.Generator().manual_seed(0))
    scale, grid = torch.full((8,), 1 / 127), Grid(8, narrow=True)
    first = (scale,) if kind is TrainedGrid else ()
    for within, over in ((None, True), (1, False)):
        twin = copy.deepcopy(layer)
        form = kind(*first, grid, 0, within)
        dress(twin, "weight", form)
        codes = (twin.weight / form.affine(layer.weight)[0].unsqueeze(1)).round().to(torch.int8)
        assert overflows(codes) == over
        twin.weight.sum().backward()
        assert torch.all(twin.parametrizations.weight.original.grad == 1)


def test_what_lies_below_a_grid_is_what_other_forms_made() -> None:
    layer = nn.Linear(4, 3)
    set_mask(layer, layer.weight > 0)
    masked = layer.weight.detach().clone()
    place = Layer("", layer)
    assert grid_of(place) is None
    dress(layer, "weight", FollowingGrid(Grid(4), 0))
    assert isinstance(grid_of(place), FollowingGrid)
    assert torch.equal(below_grid(place), masked)
