# SPDX-License-Identifier: Apache-2.0
"""Zeros beside the positions that stay, along any axes; tiny parameters alone get random values."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.graph.stand_ins import shake, zeros_beside

KEPT = {0: torch.tensor([1, 2]), 1: torch.tensor([0, 3]), 3: torch.tensor([1])}


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (3,), (0, 1, 3), ()])
def test_everything_is_zero_but_where_all_axes_stay(axes: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, 2, 3)
    before = x.clone()
    found = zeros_beside(x, {a: KEPT[a] for a in axes})
    expected = x
    for axis in axes:
        mask = torch.zeros(x.shape[axis]).index_fill(0, KEPT[axis], 1.0)
        expected = torch.einsum("abcd,x->abcd".replace("x", "abcd"[axis]), expected, mask)
    assert torch.equal(found, expected)
    assert torch.equal(x, before)
    assert found.data_ptr() != x.data_ptr()


def test_what_is_no_number_becomes_zero_too() -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0]])
    assert zeros_beside(x, {1: torch.tensor([1])}).tolist() == [[0.0, 1.0], [0.0, 2.0]]
    assert zeros_beside(x[:, 0], {0: torch.tensor([], dtype=torch.long)}).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "tiny"),
    [
        (torch.zeros(200), True),
        (torch.cat([torch.zeros(199), torch.ones(1)]), False),
        (torch.cat([torch.full((64,), 9e-4), torch.full((64,), -2e-3)]), False),
        (torch.full((3, 3), -9e-4), True),
    ],
)
def test_parameters_are_shaken_if_all_their_values_are_tiny(values: Tensor, tiny: bool) -> None:
    model = nn.Module()
    model.p = nn.Parameter(values)
    assert set(shake(model)) == ({"p"} if tiny else set())
