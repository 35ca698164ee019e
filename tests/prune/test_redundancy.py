# SPDX-License-Identifier: Apache-2.0
"""Measures of redundancy on matrices that can be checked by hand."""

import pytest
import torch

from rarefy.prune.redundancy import (
    correlations,
    duplicate_pairs,
    effective_rank,
    near_zero_share,
    similarities,
)


def test_near_zero_share() -> None:
    w = torch.tensor([1.0, -0.5, 0.009, -0.001, 0.02])
    assert near_zero_share(w) == pytest.approx(2 / 5)
    assert near_zero_share(torch.zeros(3)) == 1.0


def test_effective_rank() -> None:
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 1.0]))) == 3
    assert effective_rank(torch.diag(torch.tensor([10.0, 1.0, 0.1]))) == 1  # 100 of 101.01
    assert effective_rank(torch.diag(torch.tensor([9.0, 1.0, 0.1]))) == 2  # 81 of 82.01
    assert effective_rank(torch.zeros(3, 4)) == 0
    a, b = torch.randn(30, 4), torch.randn(4, 20)
    assert effective_rank(a @ b, energy=1.0) == 4
    assert effective_rank(torch.stack([torch.eye(2), torch.zeros(2, 2)])) == 2


def test_correlations_are_numpys() -> None:
    x = torch.randn(5, 100, dtype=torch.float64)
    x[3] = 0.7
    covariance = torch.cov(x, correction=0)
    covariance[3], covariance[:, 3] = 0, 0
    found = correlations(covariance)
    varying = [0, 1, 2, 4]
    expected = torch.corrcoef(x[varying])
    torch.testing.assert_close(found[varying][:, varying], expected)
    assert not found[3].any()


def test_duplicates_are_told_once() -> None:
    x = torch.randn(4, 50, dtype=torch.float64)
    x = torch.cat([x, -2 * x[1:2] + 3, x[:1], x[:1]])
    pairs = duplicate_pairs(correlations(torch.cov(x)))
    assert [(i, j) for i, j, _ in pairs] == [(1, 4), (0, 5), (0, 6)]
    assert [round(c, 6) for _, _, c in pairs] == [-1, 1, 1]


def test_similarities_count_the_bias() -> None:
    w = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0]])
    found = similarities(w, torch.tensor([1.0, -9.0, 2.0]))
    assert float(found[0, 2]) == pytest.approx(1)
    assert float(found[0, 1]) < 0.5
    assert float(similarities(w, None)[0, 1]) == pytest.approx(1)
