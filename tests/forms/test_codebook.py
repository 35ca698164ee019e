# SPDX-License-Identifier: Apache-2.0
"""Shared levels: look-up, gradient, and the fixed zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rarefy.forms.codebook import Codebook
from rarefy.forms.shadow import bake, dress, forms_of


def test_small_case_by_hand() -> None:
    form = Codebook(torch.tensor([[0, 1], [2, 0]]), levels=2, zero=True)
    assert form(torch.tensor([5.0, -1.0])).tolist() == [[0.0, 5.0], [-1.0, 0.0]]
    w = torch.tensor([[9.0, 3.0], [4.0, 9.0]])
    assert form.right_inverse(w).tolist() == [3.0, 4.0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.booleans())
def test_gradient_of_a_level_is_the_sum_over_its_entries(
    seed: int, levels: int, zero: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, levels + zero, (4, 5), generator=draw)
    form = Codebook(indices, levels, zero)
    values = torch.randn(levels, generator=draw, requires_grad=True)
    upstream = torch.randn(4, 5, generator=draw)
    (form(values) * upstream).sum().backward()
    expected = torch.zeros(levels + zero).index_add(0, indices.flatten(), upstream.flatten())
    assert values.grad is not None
    assert torch.allclose(values.grad, expected[int(zero) :], atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.booleans())
def test_levels_come_back_from_the_weight(seed: int, levels: int, zero: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    every = torch.arange(levels + zero)
    indices = torch.cat([every, torch.randint(0, levels + zero, (30,), generator=draw)])
    form = Codebook(indices, levels, zero)
    values = torch.randn(levels, generator=draw)
    assert torch.allclose(form.right_inverse(form(values)), values)


@pytest.mark.parametrize(("levels", "kind"), [(256, torch.uint8), (257, torch.int32)])
def test_indices_are_as_narrow_as_they_can_be(levels: int, kind: torch.dtype) -> None:
    assert Codebook(torch.tensor([0, levels - 1]), levels).indices.dtype == kind


def test_levels_are_all_that_is_trained_and_baking_keeps_few_values() -> None:
    layer = nn.Linear(4, 3)
    indices = torch.arange(12).view(3, 4) % 3
    dress(layer, "weight", Codebook(indices, 2, zero=True))
    sizes = {name: p.numel() for name, p in layer.named_parameters()}
    assert sizes == {"bias": 3, "parametrizations.weight.original": 2}
    expected = layer.weight.detach().clone()
    assert bool((expected[indices == 0] == 0).all())
    bake(layer)
    assert forms_of(layer) == []
    assert torch.equal(layer.weight.detach(), expected)
    assert len(layer.weight.unique()) == 3
