# SPDX-License-Identifier: Apache-2.0
"""The Gram matrix gives what a singular value decomposition gives, also where single precision would not."""

import pytest
import torch

from rarefy.errors import ModelError
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.truncate import Directions, energy_rank


def tail(matrix: torch.Tensor, k: int) -> float:
    return float(torch.linalg.svdvals(matrix.double())[k:].square().sum().sqrt())


@pytest.mark.parametrize("sides", [(20, 50), (50, 20)])
@pytest.mark.parametrize("k", [1, 7, 19])
def test_eckart_young(sides: tuple[int, int], k: int) -> None:
    torch.manual_seed(0)
    W = torch.randn(sides, dtype=torch.float64)
    made = DECOMPOSITIONS["svd"](W.unsqueeze(0))
    left = made.dense((k,), made.weights((k,)))[0]
    assert float((W - left).norm()) == pytest.approx(tail(W, k), rel=1e-6)


def test_single_precision_is_left_where_it_would_fail() -> None:
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(40, 40)).Q
    right = torch.linalg.qr(torch.randn(60, 40)).Q
    W = (left * torch.logspace(0, -5, 40)) @ right.T
    made = DECOMPOSITIONS["svd"](W.unsqueeze(0))
    for k in (3, 12, 30):
        found = made.dense((k,), made.weights((k,)))[0]
        assert float((W - found).norm()) == pytest.approx(tail(W, k), rel=0.02, abs=3e-7)
    assert torch.float64 in made.directions.found  # type: ignore[attr-defined]
    easy = DECOMPOSITIONS["svd"](torch.randn(1, 40, 60))
    easy.weights((10,))
    assert list(easy.directions.found) == [torch.float32]  # type: ignore[attr-defined]


def test_energy_counts_squares_over_all_groups() -> None:
    assert energy_rank(torch.tensor([[9.0, 1.0, 0.0]]), 0.9) == 1
    assert energy_rank(torch.tensor([[9.0, 1.0, 0.0]]), 0.91) == 2
    assert energy_rank(torch.tensor([[9.0, 1.0, 0.0]]), 1.0) == 2
    assert energy_rank(torch.tensor([[9.0, 1.0], [1.0, 9.0]]), 0.6) == 2
    assert energy_rank(torch.zeros(1, 4), 0.5) == 1


def test_values_that_are_not_finite_are_told() -> None:
    broken = torch.full((1, 3, 3), float("nan"))
    with pytest.raises(ModelError, match="NaN or infinity"):
        Directions(lambda _: broken, torch.float32, (3, 3)).leading(1)
