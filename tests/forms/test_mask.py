# SPDX-License-Identifier: Apache-2.0
"""Masks hold against momentum, weight decay and a second mask."""

import torch
from torch import nn

from rarefy.forms.mask import mask_of, set_mask
from rarefy.forms.shadow import bake, forms_of


def test_pruned_weights_stay_zero_under_momentum_and_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    for _ in range(3):  # momentum builds up on all weights
        optimiser.zero_grad()
        layer(torch.randn(8, 6)).square().mean().backward()
        optimiser.step()
    keep = torch.rand(4, 6) > 0.5
    set_mask(layer, keep)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = layer.weight.detach().clone()
    for _ in range(5):
        optimiser.zero_grad()
        layer(torch.randn(8, 6)).square().mean().backward()
        optimiser.step()
        assert bool((layer.weight[~keep] == 0).all())
    assert bool((layer.weight[keep] != before[keep]).all())


def test_a_second_mask_replaces_the_first() -> None:
    layer = nn.Linear(3, 3)
    dense = layer.weight.detach().clone()
    set_mask(layer, torch.eye(3) > 0)
    set_mask(layer, torch.eye(3) == 0)
    assert len(forms_of(layer)) == 1
    assert torch.equal(layer.weight.detach(), dense * (torch.eye(3) == 0))
    assert torch.equal(mask_of(layer), torch.eye(3) == 0)


def test_without_a_mask_everything_lives_even_zeros() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 0
    assert bool(mask_of(layer).all())


def test_baking_leaves_plain_zeros() -> None:
    layer = nn.Sequential(nn.Linear(3, 3))
    keep = torch.rand(3, 3) > 0.5
    set_mask(layer[0], keep)
    expected = layer[0].weight.detach().clone()
    bake(layer)
    assert forms_of(layer[0]) == []
    assert type(layer[0]) is nn.Linear
    assert torch.equal(layer[0].weight.detach(), expected)
    assert set(layer.state_dict()) == {"0.weight", "0.bias"}
