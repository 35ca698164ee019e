# SPDX-License-Identifier: Apache-2.0
"""Penalties and proximal maps against their definitions, closed forms and numerical minima."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.prune.penalties import (
    Part,
    group_gains,
    group_lasso,
    group_sizes,
    group_squares,
    grown,
    l1,
    l1_prox,
    l2,
    l2_prox,
)

numbers = st.lists(st.floats(-4, 4), min_size=1, max_size=6)
steps = st.floats(0.01, 3)


def nearest(w: torch.Tensor, penalty: object, t: float) -> torch.Tensor:
    """argmin_u ½‖u - w‖² + t p(u) by brute force on a fine grid, entry by entry."""
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    costs = [0.5 * (grid - x) ** 2 + t * penalty(grid) for x in w]  # type: ignore[operator]
    return torch.stack([grid[c.argmin()] for c in costs])


@given(numbers, steps)
def test_the_soft_threshold_is_the_minimum(values: list[float], t: float) -> None:
    w = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(l1_prox(w, t), nearest(w, torch.abs, t), atol=1e-3)
    assert torch.equal(l1_prox(w, t) == 0, w.abs() <= t)


@given(numbers, steps)
def test_the_squared_map_is_the_minimum(values: list[float], t: float) -> None:
    w = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(l2_prox(w, t), nearest(w, lambda u: 0.5 * u**2, t), atol=1e-3)


@given(st.integers(1, 6), st.floats(0.01, 1.5), st.integers(0, 10**6))
def test_the_group_map_is_the_minimum(size: int, t: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(size, dtype=torch.float64, generator=draw)
    sizes = torch.tensor([float(size)], dtype=torch.float64)
    found = w * group_gains(w.square().sum()[None], sizes, t)

    def cost(u: torch.Tensor) -> torch.Tensor:
        return 0.5 * (u - w).square().sum() + t * group_lasso(u.square().sum()[None], sizes)

    # the minimum lies on the ray of w: ½‖w‖²(a - 1)² + t sqrt(n) a ‖w‖ is convex in a
    a, norm = torch.linspace(0, 1, 20_001, dtype=torch.float64), w.norm()
    along = 0.5 * norm**2 * (a - 1) ** 2 + t * math.sqrt(size) * a * norm
    assert float(cost(found)) <= float(along.min()) + 1e-12
    nearby = [
        found + 0.01 * torch.randn(size, dtype=torch.float64, generator=draw) for _ in range(20)
    ]
    assert all(float(cost(found)) <= float(cost(u)) for u in nearby)
    if t * math.sqrt(size) >= float(w.norm()):
        assert not found.any()


def test_groups_collect_what_lies_in_several_parameters() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 4, 2), torch.randn(5)
    rows = Part(a, torch.tensor([0, -1, 1]).view(3, 1, 1))
    columns = Part(a, torch.tensor([-1, 1, 1, 0]).view(1, 4, 1))
    entries = Part(b, torch.tensor([1, 0, 0, -1, -1]))
    squares = group_squares([rows, columns, entries], 2)
    first = a[0].square().sum() + a[:, 3].square().sum() + b[1:3].square().sum()
    second = a[2].square().sum() + a[:, 1:3].square().sum() + b[0].square()
    assert torch.allclose(squares, torch.stack([first, second]).double())
    assert group_sizes([rows, columns, entries], 2).tolist() == [8 + 6 + 2, 8 + 12 + 1]
    gains = rows.gains(torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert gains.flatten().tolist() == [0.5, 1.0, 0.25]
    # one group an entry needs no axis to sum over
    assert torch.allclose(group_squares([Part(b, torch.arange(5))], 5), b.double().square())


def test_slopes_are_those_of_the_papers() -> None:
    w = torch.tensor([-2.0, 0.0, 0.5], requires_grad=True)
    assert torch.autograd.grad(l1(w), w)[0].tolist() == [-1.0, 0.0, 1.0]
    assert torch.autograd.grad(l2(w), w)[0].tolist() == w.tolist()
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    part = Part(rows, torch.arange(2).view(2, 1))
    value = group_lasso(group_squares([part], 2), group_sizes([part], 2))
    assert float(value.detach()) == pytest.approx(math.sqrt(2) * 5)
    (slope,) = torch.autograd.grad(value, rows)
    expected = math.sqrt(2) * torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    assert torch.allclose(slope, expected)


def test_the_growing_factor_starts_late_and_ends_at_its_ceiling() -> None:
    values = [grown(p / 1000, 0.3, 2.0, 10) for p in range(1001)]
    assert values[300] == 0
    assert values[301] == pytest.approx(0.2)
    assert values[-1] == 2.0
    assert values == sorted(values)
    assert len(set(values)) == 11
