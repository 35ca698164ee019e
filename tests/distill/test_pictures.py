# SPDX-License-Identifier: Apache-2.0
"""Distances between pictures, against definitions and an independent implementation."""

import numpy as np
import pytest
import torch

from rarefy.distill.pictures import (
    FixedFeatures,
    gram,
    picture_loss,
    structural_similarity,
    total_variation,
)


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(3, 2, 9, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_similarity() -> None:
    x, y = pictures(0), pictures(1)
    assert float(structural_similarity(x, x)) == pytest.approx(1)
    assert float(structural_similarity(x, y)) < 0.5
    assert float(structural_similarity(x, y)) == pytest.approx(float(structural_similarity(y, x)))
    a, b = x[0, 0, :5, :5].double().numpy(), y[0, 0, :5, :5].double().numpy()  # one window by hand
    c1, c2 = 0.02**2, 0.06**2
    both = np.cov(a.ravel(), b.ravel(), bias=True)
    wanted = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    wanted *= (2 * both[0, 1] + c2) / (both[0, 0] + both[1, 1] + c2)
    one = structural_similarity(x[:1, :1, :5, :5], y[:1, :1, :5, :5])
    assert float(one) == pytest.approx(wanted, rel=1e-3)
    assert float(structural_similarity(x[..., :3, :2], x[..., :3, :2])) == pytest.approx(1)


def test_style_and_smoothness_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])  # two channels of two pixels
    assert gram(x).tolist() == [[[5.0, 1.0], [1.0, 2.0]]]
    flat = torch.ones(1, 1, 4, 4)
    assert float(total_variation(flat)) == 0
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert float(total_variation(ramp)) == 1


def test_only_the_student_gets_gradients() -> None:
    torch.manual_seed(0)
    look, student, teacher = FixedFeatures(2), pictures(0), pictures(1)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = picture_loss(student, teacher, look)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert all(p.grad is None for p in look.parameters())
    equal = picture_loss(teacher, teacher, look)
    smooth = 0.01 * total_variation(teacher)
    assert float(equal.detach()) == pytest.approx(float(smooth.detach()), abs=1e-5)
