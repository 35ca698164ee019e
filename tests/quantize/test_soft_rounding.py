# SPDX-License-Identifier: Apache-2.0
"""Learned roundings: closed forms of the paper, and a weight that stays between its two codes."""

import math

import pytest
import torch

from rarefy.forms.grid import Grid, along
from rarefy.quantize.soft_rounding import (
    SoftRounding,
    annealed_beta,
    indecision,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)


def test_the_sigmoid_is_rectified_and_has_an_inverse() -> None:
    V = torch.tensor([-9.0, 0.0, 9.0])
    assert rectified_sigmoid(V).tolist() == [0.0, 0.5, 1.0]
    h = torch.linspace(0, 1, 11)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(h)), h, atol=1e-6)
    assert float(rectified_sigmoid(torch.tensor(1.0))) == pytest.approx(
        1.2 / (1 + math.exp(-1)) - 0.1
    )


def test_indecision_counts_what_stands_in_the_middle() -> None:
    h = torch.tensor([0.0, 1.0, 0.5, 0.75])
    assert float(indecision(h, 2.0)) == pytest.approx(1 + 0.75)
    assert float(indecision(h, 20.0)) == pytest.approx(2 - 0.5**20)
    h = torch.full((1,), 0.6, requires_grad=True)
    indecision(h, 2.0).backward()
    assert float(h.grad) == pytest.approx(-4 * 0.2, rel=1e-4)  # d/dh of 1 - (2h - 1)²


def test_beta_falls_along_a_half_cosine() -> None:
    assert [annealed_beta(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([20.0, 11.0, 2.0])
    falling = [annealed_beta(p / 10) for p in range(11)]
    assert falling == sorted(falling, reverse=True)


def weight() -> tuple[torch.Tensor, SoftRounding]:
    w = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    w[:, 0] = 0
    scale = torch.tensor([0.3, 0.2, 0.25, 0.5])
    return w, SoftRounding(w, scale, Grid(4), 0)


def test_it_starts_from_the_weight_and_ends_on_one_of_two_codes() -> None:
    w, form = weight()
    s = along(form.scale, 0, 2)
    inside = (w / s > -8) & (w / s < 7)
    assert torch.allclose(form(w)[inside], w[inside], atol=1e-6)
    with torch.no_grad():
        form.V.copy_(torch.randn(form.V.shape, generator=torch.Generator().manual_seed(1)))
    form.hard = True
    codes = form(w) / s
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    apart = (codes - w / s)[inside].abs()
    assert bool((apart < 1 + 1e-5).all())
    assert torch.all(form(w)[:, 0] == 0)
    assert int(codes.round().min()) >= -8
    assert int(codes.round().max()) <= 7


def test_gradients_reach_what_is_undecided() -> None:
    w, form = weight()
    form(w).sum().backward()
    place = w / along(form.scale, 0, 2)
    undecided = (place > -7.9) & (place < 6.9) & (w != 0)
    assert bool((form.V.grad[undecided] > 0).all())
    assert torch.all(form.V.grad[:, 0] == 0)
