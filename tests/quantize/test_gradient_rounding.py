# SPDX-License-Identifier: Apache-2.0
"""Rounded gradients: right on average where drawn, off where rounded to the nearest, gone afterwards."""

import pytest
import torch
from torch import nn

from rarefy.quantize.gradient_rounding import (
    rounding_gradients,
    stochastic_gradient,
    tree_gradient,
    uniform_gradient,
)


def test_random_rounding_is_right_on_average_and_nearest_is_not() -> None:
    torch.manual_seed(0)
    g = torch.tensor([[1.0, 0.1, -0.3, 0.02, -0.9]])
    draws = torch.stack([stochastic_gradient(g, 2) for _ in range(20000)])
    step = 2 / 3
    assert torch.allclose(draws.mean(0), g, atol=4 * step / 2 / 20000**0.5)
    off = (uniform_gradient(g, 2) - g).abs()
    assert float(off.max()) > 0.2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_nearest_level_is_half_a_step_away_at_most(bits: int) -> None:
    g = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [1e-6], [1e6]]
    )
    found = uniform_gradient(g, bits)
    reach = g.abs().amax(1, keepdim=True)
    assert bool(((found - g).abs() <= reach / (2**bits - 1) * 1.001).all())
    assert all(len(row.unique()) <= 2**bits for row in found)


def test_a_layer_s_gradient_is_rounded_while_asked_for() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(8, 4)
    g = torch.randn(8, 3)
    with rounding_gradients([layer], tree_gradient):
        y = layer(x)
        y.backward(g)
    assert torch.equal(y, layer(x))
    assert torch.allclose(layer.weight.grad, tree_gradient(g).T @ x, atol=1e-6)
    layer.zero_grad()
    layer(x).backward(g)
    assert torch.allclose(layer.weight.grad, g.T @ x, atol=1e-6)
    assert not layer._forward_hooks
