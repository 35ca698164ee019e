# SPDX-License-Identifier: Apache-2.0
"""Our LASSO against scikit-learn's, the number of survivors, and the normal equations of the refit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from rarefy.prune.lasso_channels import fit_weight, lasso, normal_equations, select_channels


@pytest.mark.parametrize("penalty", [0.001, 0.05, 0.3, 1.0])
def test_it_is_sklearns_lasso(penalty: float) -> None:
    draw = np.random.default_rng(0)
    Z = draw.normal(size=(300, 12)) @ draw.normal(size=(12, 12))
    y = Z[:, 0] - 2 * Z[:, 3] + draw.normal(size=300)
    other = Lasso(alpha=penalty, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(Z, y)
    Q, r = torch.from_numpy(Z.T @ Z / 300), torch.from_numpy(Z.T @ y / 300)
    found = lasso(Q, r, penalty, tolerance=1e-13, sweeps=20_000)
    assert np.abs(found.numpy() - other.coef_).max() < 1e-6


def test_a_coefficient_of_an_empty_channel_stays_zero() -> None:
    torch.manual_seed(0)
    Z = torch.randn(50, 4, dtype=torch.float64)
    Z[:, 2] = 0
    beta = lasso(Z.mT @ Z / 50, Z.mT @ Z.sum(1) / 50, 1e-3)
    assert float(beta[2]) == 0
    assert bool((beta[[0, 1, 3]] != 0).all())


@settings(max_examples=40)
@given(st.integers(2, 14), st.data())
def test_exactly_as_many_survive_as_asked(n: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    Z = torch.randn(40, n, generator=generator, dtype=torch.float64)
    Z[:, -1] = Z[:, 0]  # twins drop out at the same penalty
    y = Z @ torch.randn(n, generator=generator, dtype=torch.float64)
    found = select_channels(Z.mT @ Z / 40, Z.mT @ y / 40, kept)
    assert len(set(found.tolist())) == kept
    assert found.tolist() == sorted(found.tolist())


def test_the_channels_that_make_the_output_survive() -> None:
    torch.manual_seed(0)
    Z = torch.randn(400, 10, dtype=torch.float64)
    y = 3 * Z[:, 2] + 2 * Z[:, 5] - 4 * Z[:, 7] + 0.1 * torch.randn(400, dtype=torch.float64)
    assert select_channels(Z.mT @ Z / 400, Z.mT @ y / 400, 3).tolist() == [2, 5, 7]


def test_normal_equations_are_those_of_the_stacked_problem() -> None:
    torch.manual_seed(0)
    X, W = torch.randn(30, 12, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    Y = torch.randn(30, 5, dtype=torch.float64)
    columns = torch.randperm(12).view(4, 3)
    Z = torch.stack([(X[:, c] @ W[:, c].mT).flatten() for c in columns], 1)  # (N · out, channels)
    Q, r = normal_equations(X, Y, W, columns)
    assert torch.allclose(Q, Z.mT @ Z / 30)
    assert torch.allclose(r, Z.mT @ Y.flatten() / 30)


@pytest.mark.parametrize("biased", [True, False])
def test_what_the_refit_leaves_is_orthogonal_to_the_inputs(biased: bool) -> None:
    torch.manual_seed(0)
    X = torch.randn(80, 6, dtype=torch.float64) + 1
    Y = torch.randn(80, 3, dtype=torch.float64) + 2
    W, b = fit_weight(X, Y, torch.zeros(3, 6, dtype=torch.float64), 0.0, biased)
    left = Y - X @ W.mT - b
    assert float((left.mT @ X).abs().max()) < 1e-10
    if biased:
        assert float(left.mean(0).abs().max()) < 1e-12
