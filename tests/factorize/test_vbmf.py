# SPDX-License-Identifier: Apache-2.0
"""Variational Bayes finds the rank under noise, and its free energy is the paper's."""

import math

import pytest
import torch

from rarefy.factorize.vbmf import free_energy, threshold, vbmf_rank


@pytest.mark.parametrize(
    ("sides", "rank", "noise"),
    [((60, 90), 4, 0.1), ((90, 60), 7, 0.01), ((64, 64), 5, 1.0), ((64, 576), 30, 0.2),
     ((100, 400), 0, 1.0), ((50, 60), 3, 0.0)],
)  # fmt: skip
def test_the_rank_under_noise_is_found(sides: tuple[int, int], rank: int, noise: float) -> None:
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(s, generator=draw, dtype=torch.float64)
                       for s in ((sides[0], rank), (rank, sides[1])))  # fmt: skip
        matrix = left @ right
        matrix += noise * torch.randn(sides, generator=draw, dtype=torch.float64)
        assert vbmf_rank(torch.linalg.svdvals(matrix).square(), sides) == rank


def test_zeros_have_no_rank() -> None:
    assert vbmf_rank(torch.zeros(5), (5, 9)) == 0


def test_the_free_energy_by_hand() -> None:
    L, M, s, v = 2, 4, (40.0, 1.0), 0.25
    alpha, x = L / M, [value / (M * v) for value in s]
    tau = (x[0] - 1.5 + math.sqrt((x[0] - 1.5) ** 2 - 2)) / 2
    gain = math.log(tau + 1) + alpha * math.log(tau / alpha + 1) - tau
    wanted = sum(each - math.log(each) for each in x) + gain
    assert x[0] > threshold(alpha) > x[1]
    found = free_energy(torch.tensor(s).double(), torch.tensor([v]).double(), (L, M), 1)
    assert float(found) == pytest.approx(wanted)
