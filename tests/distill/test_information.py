# SPDX-License-Identifier: Apache-2.0
"""Variational information: hints when the variance is fixed, the residual's variance when it is not."""

import pytest
import torch

from rarefy.distill.information import Information, information_loss
from rarefy.distill.maps import hint_loss
from rarefy.distill.shown import Shown


def test_a_fixed_variance_gives_hints() -> None:
    s, t = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    fixed = information_loss(s, t, torch.ones(1, 3, 1, 1))
    assert float(fixed) == pytest.approx(float(hint_loss(s, t)), rel=1e-5)


def test_the_best_variance_is_that_of_the_residual() -> None:
    s, t = torch.randn(6, 3, 4, 4), 2 * torch.randn(6, 3, 4, 4)
    residual = (t - s).square().mean((0, 2, 3)).view(1, 3, 1, 1)
    best = float(information_loss(s, t, residual))
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert float(information_loss(s, t, factor * residual)) > best


def test_what_is_trained_finds_both() -> None:
    torch.manual_seed(0)
    s = torch.randn(256, 3)
    t = s @ torch.randn(3, 2) + torch.tensor([0.1, 0.5]) * torch.randn(256, 2)
    shown = Shown([[(s, t)]], t, [t])
    lesson = Information(shown)
    optimiser = torch.optim.Adam(lesson.parameters(), 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        lesson(shown).backward()
        optimiser.step()
    deviation = (torch.nn.functional.softplus(lesson.raw[0]) + 1e-4).sqrt()
    assert deviation.tolist() == pytest.approx([0.1, 0.5], rel=0.25)
