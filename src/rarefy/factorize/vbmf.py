# SPDX-License-Identifier: Apache-2.0
"""How many singular values of a matrix stand out of the noise, by variational Bayes in closed form.

Nakajima, Sugiyama, Babacan, Tomioka: Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization, Journal of Machine Learning Research 14, 2013, theorems 2 and 3 (empirical priors, noise
variance estimated); the constant 2.5129 is that of their equation for the threshold.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GRID, ROUNDS = 64, 8


def vbmf_rank(squares: Tensor, shape: tuple[int, int]) -> int:
    """The number of components that empirical variational Bayes keeps, 0 to the shorter side.

    Args:
        squares: (n,) squared singular values of the matrix, all of them.
        shape: its sides.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
        >>> matrix = draw(60, 4) @ draw(4, 90) + 0.1 * draw(60, 90)
        >>> vbmf_rank(torch.linalg.svdvals(matrix).square(), (60, 90))
        4
    """
    L, M = min(shape), max(shape)
    s = squares.double().sort(descending=True).values[:L]
    s = torch.cat([s, s.new_zeros(L - len(s))])
    total = float(s.sum())
    if total <= 0:
        return 0
    alpha = L / M
    x_bar = threshold(alpha)
    H = max(1, min(math.ceil(L / (1 + alpha)) - 1, L))
    rest = s[H:]
    lowest = max(float(rest.sum()) / (M * max(len(rest), 1)), float(s[min(H, L - 1)]) / (M * x_bar))
    highest = total / (L * M)
    lowest = min(max(lowest, 1e-14 * highest), highest)
    variance = least(lambda v: free_energy(s, v, (L, M), H), lowest, highest)
    return int((s[:H] > M * variance * x_bar).sum())


def threshold(alpha: float) -> float:
    """The value of gamma² / (M sigma²) above which a component is kept."""
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def free_energy(s: Tensor, variances: Tensor, shape: tuple[int, int], H: int) -> Tensor:
    """The part of the free energy that depends on the noise variance.

    Args:
        s: (L,) squared singular values, falling.
        variances: (V,) noise variances to try.
        shape: (L, M).
        H: components that may be more than noise.

    Returns:
        (V,) free energies.
    """
    L, M = shape
    alpha = L / M
    x = (s.unsqueeze(1) / (M * variances)).clamp(min=1e-300)  # (L, V)
    total = (x - x.log()).sum(0)
    apart = (x - (1 + alpha)).clamp(min=2 * math.sqrt(alpha))
    tau = 0.5 * (apart + (apart.square() - 4 * alpha).clamp(min=0).sqrt())
    gain = (tau + 1).log() + alpha * (tau / alpha + 1).log() - tau
    kept = (x > threshold(alpha)) & (torch.arange(L, device=s.device) < H).unsqueeze(1)
    return total + torch.where(kept, gain, 0.0).sum(0)


def least(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Where a function of one positive variable is least: a grid in the logarithm, made finer and finer."""
    for _ in range(ROUNDS):
        points = torch.logspace(math.log10(low), math.log10(high), GRID, dtype=torch.float64)
        best = int(function(points).argmin())
        low, high = float(points[max(best - 1, 0)]), float(points[min(best + 1, GRID - 1)])
    return float(points[best])
