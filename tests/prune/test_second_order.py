# SPDX-License-Identifier: Apache-2.0
"""Wanda and SparseGPT against their definitions, and against each other."""

import itertools

import pytest
import torch
from torch import Tensor

from rarefy.loops.ridge import inverse_factor
from rarefy.prune.second_order import keep_by_row, sparse_gpt, wanda_scores


def inputs(n: int = 12, rows: int = 400, seed: int = 0) -> Tensor:
    """Correlated rows of very different scales, (1, n, n) of second moments."""
    torch.manual_seed(seed)
    X = (
        torch.randn(rows, n).double()
        @ torch.randn(n, n).double()
        * torch.logspace(-1, 1, n).double()
    )
    return (X.mT @ X / rows).unsqueeze(0)


def error(W: Tensor, new: Tensor, H: Tensor) -> float:
    D = new.double() - W.double()
    return float(((D @ H) * D).sum())


def test_wanda_is_magnitude_where_all_inputs_are_equally_large() -> None:
    torch.manual_seed(0)
    W = torch.randn(1, 6, 8)
    H = 3.0 * torch.eye(8).double().unsqueeze(0)
    assert torch.equal(keep_by_row(wanda_scores(W, H), 0.5), keep_by_row(W.abs(), 0.5))


def test_wanda_by_hand() -> None:
    W = torch.tensor([[[3.0, -2.0, 1.0, 0.5]]])
    H = torch.diag(torch.tensor([0.01, 1.0, 1.0, 100.0])).double().unsqueeze(0)
    assert torch.allclose(wanda_scores(W, H), torch.tensor([[[0.3, 2.0, 1.0, 5.0]]]))
    assert keep_by_row(wanda_scores(W, H), 0.5).tolist() == [[[False, True, False, True]]]


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    H = inputs()
    H[:, 3], H[:, :, 3] = 0, 0  # an input that is always zero
    U = inverse_factor(H, 0.01)
    assert torch.equal(U, U.triu())
    mean = H[0].diagonal().mean()
    damped = H[0] + 0.01 * mean * torch.eye(12)
    damped[3, 3] += mean
    assert torch.allclose((U[0].mT @ U[0]) @ damped, torch.eye(12).double(), atol=1e-8)


def test_one_weight_goes_as_the_optimal_brain_surgeon_takes_it() -> None:
    H, W = inputs(), torch.randn(1, 1, 12).double()
    alive = torch.ones(1, 1, 12, dtype=torch.bool)
    U = inverse_factor(H, 1e-12)
    first = W.clone()
    first[..., 0] = 1e-6  # so that it is the one that goes
    new, keep = sparse_gpt(first, U, 1 / 12, alive=alive)
    assert keep.flatten().tolist() == [False] + [True] * 11
    inverse = torch.linalg.inv(H[0])
    expected = first[0, 0] - first[0, 0, 0] / inverse[0, 0] * inverse[:, 0]
    assert torch.allclose(new[0, 0, 1:], expected[1:], atol=1e-7)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_who_makes_up_for_it_loses_less(seed: int, pattern: tuple[int, int] | None) -> None:
    H = inputs(24, seed=seed)
    W = torch.randn(1, 40, 24)
    by_size = W * keep_by_row(W.abs(), 0.5, pattern)
    by_input = W * keep_by_row(wanda_scores(W, H), 0.5, pattern)
    solved, keep = sparse_gpt(W, inverse_factor(H, 0.01), 0.5, pattern=pattern)
    assert error(W, solved, H) < error(W, by_input, H) < error(W, by_size, H)
    assert torch.equal(solved != 0, keep)
    if pattern:
        assert (keep.unflatten(-1, (-1, 4)).sum(-1) == 2).all()
    else:
        assert int(keep.sum()) == keep.numel() // 2


@pytest.mark.parametrize("block", [1, 5, 128])
def test_for_a_given_mask_the_last_columns_are_the_least_squares_solution(block: int) -> None:
    H = inputs()
    W = torch.randn(1, 3, 12).double()
    alive = torch.zeros(1, 3, 12, dtype=torch.bool)
    alive[..., 6:] = True  # the first half is gone, and what it carried with it
    start = W * alive
    new, keep = sparse_gpt(W, inverse_factor(H, 1e-12), 0.0, alive=alive, block=block)
    assert torch.equal(keep, alive)
    assert torch.allclose(new, start)  # a weight that is gone already has nothing to hand on


def test_groups_are_solved_each_by_itself() -> None:
    H = torch.cat([inputs(8, seed=s) for s in range(3)])
    W = torch.randn(3, 4, 8)
    U = inverse_factor(H, 0.01)
    together = sparse_gpt(W, U, 0.5, block=3)
    for g, part in itertools.product(range(3), range(2)):
        alone = sparse_gpt(W[g : g + 1], U[g : g + 1], 0.5, block=3)
        assert torch.allclose(together[part][g].double(), alone[part][0].double())
