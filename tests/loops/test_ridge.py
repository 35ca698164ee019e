# SPDX-License-Identifier: Apache-2.0
"""The ridge against its definition, and against singular matrices."""

import torch

from rarefy.loops.ridge import ridge_solve


def test_it_is_the_minimum_of_least_squares_with_a_penalty() -> None:
    torch.manual_seed(0)
    X, Y = torch.randn(20, 5).double(), torch.randn(20, 3).double()
    W = ridge_solve(X.mT @ X, X.mT @ Y, 0.3).requires_grad_()
    weight = 0.3 * float((X.mT @ X).diagonal().mean())
    loss = (X @ W - Y).square().sum() + weight * W.square().sum()
    (slope,) = torch.autograd.grad(loss, W)
    assert float(slope.abs().max()) < 1e-10


def test_every_matrix_of_a_batch_has_its_own_ridge() -> None:
    A = torch.stack([torch.eye(3), 100 * torch.eye(3)]).double()
    X = ridge_solve(A, torch.ones(2, 3, 1).double(), 1.0)
    assert torch.allclose(X[0], torch.full((3, 1), 1 / 2).double())
    assert torch.allclose(X[1], torch.full((3, 1), 1 / 200).double())


def test_a_singular_matrix_gives_a_solution_of_its_range() -> None:
    A = torch.ones(4, 4).double()
    X = ridge_solve(A, torch.full((4,), 8.0).double(), 1e-8)
    assert torch.allclose(A @ X, torch.full((4,), 8.0).double(), atol=1e-6)
    assert float(ridge_solve(torch.zeros(2, 2), torch.zeros(2)).abs().max()) == 0
