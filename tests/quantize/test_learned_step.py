# SPDX-License-Identifier: Apache-2.0
"""Learned steps: values, the paper's gradient written out again, its share, its start."""

import math

import pytest
import torch
from torch import Tensor

from rarefy.quantize.learned_step import (
    GradientShare,
    StraightThrough,
    gradient_share,
    initial_step,
    learned_round,
)


def by_the_paper(v: Tensor, s: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Equations 1 to 3 of the LSQ paper, element by element: values and d value / d step."""
    values, slopes = [], []
    for x in v.flatten().tolist():
        u = x / float(s)
        if u <= low:
            values.append(low * float(s))
            slopes.append(float(low))
        elif u >= high:
            values.append(high * float(s))
            slopes.append(float(high))
        else:
            r = float(torch.tensor(u).round())
            values.append(r * float(s))
            slopes.append(r - u)
    return torch.tensor(values).view(v.shape), torch.tensor(slopes).view(v.shape)


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-2, 1), (-128, 127)])
def test_values_and_gradients_are_those_of_the_paper(low: int, high: int) -> None:
    v = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    s = torch.tensor(2.2 / high, requires_grad=True)
    g = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    y = learned_round(v, s, torch.tensor(0, dtype=torch.int8), -1, low, high)
    values, slopes = by_the_paper(v.detach(), s.detach(), low, high)
    assert torch.allclose(y, values, atol=1e-6)
    y.backward(g)
    share = 1 / math.sqrt(40 * high)  # features of one of six examples
    assert torch.allclose(s.grad, (slopes * g).sum() * share, rtol=1e-4)
    inside = (v.detach() / s.detach() >= low) & (v.detach() / s.detach() <= high)
    assert torch.equal(v.grad, g * inside)


def test_each_channel_has_a_step_and_counts_its_own_weights() -> None:
    w = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(2))
    s = torch.tensor([0.1, 0.4, 0.05], requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.int8)
    learned_round(w, s, zeros, 0, -8, 7).sum().backward()
    expected = [by_the_paper(w[i], s[i].detach(), -8, 7)[1].sum() for i in range(3)]
    assert torch.allclose(s.grad, torch.stack(expected) / math.sqrt(10 * 7), rtol=1e-4)


def test_a_share_of_the_gradient_changes_no_value() -> None:
    x = torch.tensor([0.1, 1 / 3, 7.7], requires_grad=True)
    y = GradientShare.apply(x, 0.25)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad.tolist() == [0.25] * 3


def test_share_and_start_in_numbers() -> None:
    assert gradient_share(100, 4) == 0.05
    assert float(initial_step(torch.tensor(0.5), 16)) == 0.25
    assert float(initial_step(torch.tensor(0.0), 16)) > 0


def test_a_replaced_value_passes_the_gradient_on() -> None:
    x = torch.tensor([0.3, -0.2], requires_grad=True)
    y = StraightThrough.apply(x, torch.tensor([1.0, 0.0]))
    assert y.tolist() == [1.0, 0.0]
    (y * torch.tensor([2.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [2.0, 5.0]
