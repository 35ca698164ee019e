# SPDX-License-Identifier: Apache-2.0
"""Trained clips and ranges: gradients in closed form, zero always a value."""

import pytest
import torch
from torch import Tensor

from rarefy.forms.grid import Grid
from rarefy.quantize.clipping import clipped_round, range_scale, ranged_round


def values(seed: int = 0) -> Tensor:
    return 3 * torch.randn(400, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_clip_is_moved_by_what_exceeds_it_alone(bits: int) -> None:
    x = values().requires_grad_()
    alpha = torch.tensor(2.0, requires_grad=True)
    g = torch.randn(400, generator=torch.Generator().manual_seed(1))
    y = clipped_round(x, alpha, Grid(bits, signed=False, symmetric=False))
    levels = 2**bits - 1
    expected = (x.detach().clamp(0, 2) * levels / 2).round() * 2 / levels
    assert torch.allclose(y, expected, atol=1e-6)
    y.backward(g)
    assert torch.allclose(alpha.grad, g[x.detach() >= 2].sum(), rtol=1e-5)
    assert torch.equal(x.grad, torch.where((x.detach() >= 0) & (x.detach() < 2), g, 0.0))


def test_the_ends_of_a_range_get_what_lies_beyond_and_the_rounding_inside() -> None:
    grid = Grid(3, signed=False, symmetric=False)
    x = values().requires_grad_()
    low, high = (torch.tensor(v, requires_grad=True) for v in (-2.0, 5.0))  # steps of exactly 1
    g = torch.randn(400, generator=torch.Generator().manual_seed(2))
    y = ranged_round(x, low, high, grid)
    assert torch.equal(y, x.detach().clamp(-2, 5).round())
    y.backward(g)
    v = x.detach()
    inside = (v >= -2) & (v <= 5)
    residual = torch.where(inside, v.round() - v, 0.0)
    assert torch.allclose(high.grad, (g * residual).sum() / 7 + g[v > 5].sum(), rtol=1e-4)
    assert torch.allclose(low.grad, g[v < -2].sum() - (g * residual).sum() / 7, rtol=1e-4)
    assert torch.equal(x.grad, g * inside)


@pytest.mark.parametrize("ends", [(-1.3, 2.9), (0.0, 1.7), (-0.4, 0.0)])
def test_zero_is_a_value_of_every_range(ends: tuple[float, float]) -> None:
    grid = Grid(4, signed=False, symmetric=False)
    low, high = (torch.tensor(e) for e in ends)
    scale, zero_point = range_scale(low, high, grid)
    assert float(scale) == pytest.approx((ends[1] - ends[0]) / 15)
    assert 0 <= int(zero_point) <= 15
    assert float(ranged_round(torch.zeros(1), low, high, grid)) == 0.0
