# SPDX-License-Identifier: Apache-2.0
"""Losses on relations: what moves all examples alike costs nothing; votes and triplets by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rarefy.distill.relations import (
    affinity_loss,
    agreement,
    angle_loss,
    closer,
    correlation,
    correlation_loss,
    distance_loss,
    distances,
    relation_loss,
    triplet_loss,
    votes,
)
from rarefy.loops.losses import similarity_loss

seeds = st.integers(0, 10**6)


def points(seed: int, examples: int = 6, size: int = 4) -> Tensor:
    return torch.randn(examples, size, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, size: int = 4) -> Tensor:
    return torch.linalg.qr(points(seed, size, size).double())[0].float()


@given(seeds, st.floats(0.1, 9))
def test_similarity_transforms_cost_nothing(seed: int, scale: float) -> None:
    x = points(seed)
    moved = scale * x @ rotation(seed + 1) + points(seed + 2, 1)
    for loss in (distance_loss, angle_loss, relation_loss):
        assert float(loss(moved, x)) == pytest.approx(0, abs=1e-4)
    turned = scale * x @ rotation(seed + 1)
    for loss in (similarity_loss, correlation_loss):
        assert float(loss(turned, x)) == pytest.approx(0, abs=1e-5)
    other = points(seed + 3)
    assert float(relation_loss(other, x)) > 1e-3


@pytest.mark.parametrize("examples", [1, 2])
def test_tiny_batches(examples: int) -> None:
    x, y = points(0, examples).requires_grad_(), points(1, examples, 7)
    loss = relation_loss(x, y) + similarity_loss(x, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert bool(torch.isfinite(x.grad).all())  # type: ignore[arg-type]
    if examples == 2:  # one distance, relative to itself
        assert float(distance_loss(x, y)) == pytest.approx(0, abs=1e-6)


def test_distances_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2 with mean 2
    expected = torch.tensor([[0.0, 0.5, 1.5], [0.5, 0.0, 1.0], [1.5, 1.0, 0.0]])
    torch.testing.assert_close(distances(x), expected)


def test_correlation_is_the_gaussian_kernel() -> None:
    x = points(0)
    unit = torch.nn.functional.normalize(x, dim=1)
    exact = torch.exp(-0.4 * torch.cdist(unit, unit).square())
    torch.testing.assert_close(correlation(x, 0.4, 12), exact, rtol=1e-4, atol=1e-4)
    assert float((correlation(x) - exact).abs().max()) < 0.1


def test_affinity_of_pairs() -> None:
    a, b = points(0), points(1)
    turn = rotation(2)
    assert float(affinity_loss((a, b), (a, b))) == pytest.approx(0, abs=1e-6)
    assert float(affinity_loss((a @ turn, b @ turn), (a, b))) == pytest.approx(0, abs=1e-5)
    assert float(affinity_loss((a @ turn, b), (a, b))) > 0.01
    assert float(affinity_loss((a, b), (b, a))) > 0.01


def test_votes_by_hand() -> None:
    near = torch.tensor([[0.0], [1.0], [5.0]])  # seen from 0, 1 is nearer than 2
    far = torch.tensor([[0.0], [5.0], [1.0]])  # the other way round
    assert bool(closer(near)[0, 1, 2])
    assert not bool(closer(near)[0, 2, 1])
    assert bool(votes([near, near, far])[0, 1, 2])
    assert bool(votes([near, far, far])[0, 2, 1])
    tied = votes([near, far])
    assert not bool(tied[0, 1, 2])
    assert not bool(tied[0, 2, 1])
    assert float(agreement(closer(near), closer(near))) == 1
    assert float(agreement(closer(near), closer(far))) < 1


def test_triplets_cost_nothing_for_a_student_of_the_same_order() -> None:
    teacher = points(0, 5, 3)
    unanimous = [teacher, 2 * teacher, teacher @ rotation(4, 3)]
    assert float(triplet_loss(7 * teacher, unanimous, margin=0.0)) == 0
    assert float(triplet_loss(points(9, 5, 3), unanimous, margin=0.0)) > 0
    student, shown = points(9, 5, 2).requires_grad_(), points(1, 5, 3).requires_grad_()
    triplet_loss(student, [shown, teacher, teacher]).backward()
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0
    assert shown.grad is None  # votes carry no gradient


def test_a_triplet_by_hand() -> None:
    teacher = torch.tensor([[0.0], [1.0], [3.0]])
    student = torch.tensor([[0.0], [3.0], [1.0]])
    d = distances(student)
    wanted = votes([teacher])
    total, count = 0.0, 0
    for i in range(3):
        for j in range(3):
            for k in range(3):
                if wanted[i, j, k]:
                    total += max(0.0, 0.1 + float(d[i, j]) - float(d[i, k]))
                    count += 1
    assert float(triplet_loss(student, [teacher], 0.1)) == pytest.approx(total / count)
    assert not math.isclose(total, 0)
