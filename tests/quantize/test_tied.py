# SPDX-License-Identifier: Apache-2.0
"""A form reaches a weight wherever the network uses it."""

import copy

import pytest
import torch
from torch import nn

from rarefy.errors import ModelError
from rarefy.forms.codebook import Codebook
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select


@pytest.fixture
def language() -> nn.Module:
    """An embedding whose table is the last layer's weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False))
    model[2].weight = model[0].weight
    return model


def test_all_that_hold_a_weight_are_found(language) -> None:
    found = holders(language, select(language, ("0", "1")))
    assert [[layer.name for layer in shared] for shared in found] == [["0", "2"], ["1"]]


def test_one_form_serves_all_and_one_parameter_is_stored(language) -> None:
    (shared,) = holders(language, select(language, "0"))
    w = finite_weight(shared[0])
    clothe(shared, w, Codebook((w > 0).long(), 2))
    copied = copy.deepcopy(language)
    for model in (language, copied):
        first, second = (model[i].parametrizations.weight.original for i in (0, 2))
        assert first is second
        assert first.shape == (2,)
        assert torch.equal(model[0].weight, model[2].weight)
    language(torch.tensor([1, 2])).sum().backward()
    assert language[0].parametrizations.weight.original.grad.shape == (2,)


def test_broken_weights_are_named(language) -> None:
    language[1].weight.data[3, 3] = torch.inf
    with pytest.raises(ModelError, match="the weight of '1' holds NaN or infinity"):
        finite_weight(select(language, "1")[0])
