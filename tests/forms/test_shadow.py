# SPDX-License-Identifier: Apache-2.0
"""Forms stack, come off and bake without changing what the network computes."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.forms.codebook import Codebook
from rarefy.forms.mask import Mask, set_mask
from rarefy.forms.shadow import (
    bake,
    bake_one,
    dress,
    dressed,
    find,
    forms_of,
    store_dense,
    unparametrize,
)


def stacked() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    set_mask(layer, torch.rand(3, 4) > 0.3)
    indices = (layer.weight != 0).long() * (1 + torch.arange(12).view(3, 4) % 2)
    weight = bake_one(layer)
    dress(layer, "weight", Codebook(indices, 2, zero=True))
    assert torch.equal(layer.weight == 0, weight == 0)
    return layer


def test_forms_stand_in_the_order_of_registration() -> None:
    layer = nn.Linear(4, 3)
    set_mask(layer, torch.rand(3, 4) > 0.3)
    dress(layer, "weight", Mask(torch.rand(3, 4) > 0.3))
    lower, upper = forms_of(layer)
    original = layer.parametrizations["weight"].original
    assert torch.equal(layer.weight, original * lower.keep * upper.keep)
    assert find(layer, Mask) is lower
    assert find(layer, Codebook) is None
    assert forms_of(layer, "bias") == []


def test_dressed_lists_every_tensor_with_a_form() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    set_mask(model[1][0], torch.ones(2, 2))
    set_mask(model[1][0], torch.ones(2), "bias")
    assert [(path, name) for path, _, name in dressed(model)] == [
        ("1.0", "weight"),
        ("1.0", "bias"),
    ]


def test_baking_a_stack_keeps_the_output_and_restores_the_class() -> None:
    model = nn.Sequential(stacked(), nn.ReLU())
    x = torch.randn(5, 4)
    before = model(x).detach()
    assert bake(model) is model
    assert torch.equal(model(x), before)
    assert type(model[0]) is nn.Linear
    assert list(dressed(model)) == []
    assert model[0].weight.requires_grad


def test_baking_leaves_foreign_parametrizations_alone() -> None:
    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Double())
    bake(layer)
    assert len(forms_of(layer)) == 1


def test_one_of_two_dressed_tensors_comes_off() -> None:
    layer = nn.Linear(3, 2)
    set_mask(layer, torch.ones(2, 3))
    set_mask(layer, torch.tensor([True, False]), "bias")
    unparametrize(layer, "weight")
    assert "weight" not in layer._parameters
    store_dense(layer, "weight", torch.ones(2, 3))
    assert torch.equal(layer.weight, torch.ones(2, 3))
    assert float(layer.bias.detach()[1]) == 0
    assert layer(torch.ones(1, 3)).shape == (1, 2)


def test_copies_do_not_share_what_they_wear() -> None:
    layer = nn.Linear(3, 2)
    set_mask(layer, torch.ones(2, 3))
    twin = copy.deepcopy(layer)
    set_mask(twin, torch.tensor([True, False]), "bias")
    third = copy.deepcopy(twin)
    bake(third)
    x = torch.randn(4, 3)
    assert torch.equal(third(x), twin(x))
    assert layer(x).shape == (4, 2)
    assert not isinstance(vars(type(layer)).get("bias"), property)
    unparametrize(twin, "weight")
    assert torch.equal(layer.weight, layer.parametrizations["weight"].original)


def test_dense_values_replace_whatever_held_the_weight() -> None:
    layer = stacked()
    store_dense(layer, "weight", torch.full((3, 4), 2.0))
    assert forms_of(layer) == []
    assert torch.equal(layer.weight, torch.full((3, 4), 2.0))
    values = bake_one(layer)
    assert torch.equal(values, layer.weight)
