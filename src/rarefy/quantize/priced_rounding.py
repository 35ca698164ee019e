# SPDX-License-Identifier: Apache-2.0
"""Rounding weights to integers times a step so that error and bits together are smallest.

Minimises g_r · e H eᵀ + λ · bits(q) for every row w of a layer, e = w - Δ q, with H the second moments of the
layer's inputs and g_r how much the network's output moves with the row's. Columns are taken one after the
other; what rounding one leaves is made up for by those still to come (Frantar, Ashkboos, Hoefler, Alistarh:
GPTQ, 2022, arXiv 2210.17323, equations 2 and 3, with the Cholesky form of section 3.3), and of the integers
near a value that one is taken whose error and price are least (Sze, Budagavi: rate-distortion optimised
quantisation, as in video coding).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
LARGEST = 500
"""Integers reach from -500 to 500, so that the weight coder may use contexts."""


@dataclass(frozen=True)
class Sweep:
    """What rounding a layer needs beside its weight.

    Attributes:
        order: (G, n) columns, those that matter most first.
        upper: (G, n, n) Cholesky factor U of the inverse of H in that order, H⁻¹ = Uᵀ U.
        gain: (G, r) how much a row's error counts.
    """

    order: Tensor
    upper: Tensor
    gain: Tensor


def prepare(H: Tensor, gain: Tensor, damping: float = 0.01, stored: bool = False) -> Sweep:
    """Factorises second moments.

    Args:
        H: (G, n, n) mean products of inputs.
        gain: (G, r), positive.
        damping: added to the diagonal, times its mean.
        stored: whether columns stay in the order in which they are stored.
    """
    n = H.shape[-1]
    scale = H.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)
    ridge = damping * scale.view(-1, 1, 1) * torch.eye(n, dtype=H.dtype, device=H.device)
    worth = H.diagonal(dim1=-2, dim2=-1)
    order = worth.argsort(-1, descending=True)
    if stored:
        order = torch.arange(n, device=H.device).expand_as(worth)
    ordered = (H + ridge).gather(1, order.unsqueeze(2).expand_as(H))
    ordered = ordered.gather(2, order.unsqueeze(1).expand_as(H))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return Sweep(order, torch.linalg.cholesky(inverse).mT, gain)


def step_for(sweep: Sweep, slope: float) -> float:
    """The step at which a bit more or less is worth `slope`: Δ² = 6 λ / (ln 2 · curvature).

    At a high rate the error of a weight is Δ² / 12 times its curvature g_r / U_jj² and falls to a quarter
    for every bit; the curvatures' geometric mean stands for all.
    """
    log = torch.log(sweep.gain.double().clamp(min=1e-30)).mean()
    log = log - 2 * torch.log(sweep.upper.diagonal(dim1=-2, dim2=-1).double()).mean()
    return float(torch.exp(0.5 * (torch.tensor(6 * slope / 0.6931471805599453).log() - log)))


def row_scales(sweep: Sweep) -> Tensor:
    """What to divide rows by so that all count alike, (G, r): powers of two about their geometric mean.

    A row's error counts g_r times what its columns do, 1 / U_jj²; equal harm asks for steps in proportion
    to the inverse root. Limited to 1 / 32 to 32.
    """
    curvature = -2 * torch.log2(sweep.upper.diagonal(dim1=-2, dim2=-1).double()).mean(-1, True)
    worth = torch.log2(sweep.gain.double().clamp(min=1e-30)) + curvature
    return torch.exp2(((worth.mean() - worth) / 2).round().clamp(-5, 5)).float()


def prices_of(codes: Tensor) -> Tensor:
    """Bits of the integers -LARGEST … LARGEST under their own smoothed, even law, (2 LARGEST + 1,)."""
    sizes = torch.bincount(codes.abs().flatten().clamp(max=LARGEST), minlength=LARGEST + 1).double()
    total = sizes.sum()
    mean = float((sizes * torch.arange(LARGEST + 1)).sum() / total)
    ratio = mean / (1 + mean)  # of a geometric law with this mean, which fills the gaps
    law = (1 - ratio) * ratio ** torch.arange(LARGEST + 1, dtype=torch.float64)
    chance = (sizes + 4 * law + 1e-9) / (total + 4)
    bits = -chance.log2()
    bits[1:] += 1
    return torch.cat([bits[1:].flip(0), bits]).to(torch.float32)


def round_column(x: Tensor, weight: Tensor, slope: float, bits: Tensor) -> Tensor:
    """The cheapest integers for one column, same shape as x, float.

    Args:
        x: (G, r) values in steps.
        weight: (G, r) what a squared error of one step costs.
        slope: what a bit costs.
        bits: see `prices_of`.
    """
    return cheapest(x, weight, slope * bits[LARGEST:], 0)


def cheapest(x: Tensor, weight: Tensor, prices: Tensor, first: Tensor | int) -> Tensor:
    """Of the integer nearest to each x, the one below it and zero that whose error and price are least.

    Args:
        x: values in steps.
        weight: what a squared error of one step costs.
        prices: of magnitudes, one table or several behind one another.
        first: the place of the table that a value has to pay by.
    """
    size = x.abs()
    near = size.round().clamp_(max=LARGEST)
    tried = torch.stack([near, (near - 1).clamp_(min=0), torch.zeros_like(near)])
    costs = (size - tried).square_().mul_(weight).add_(prices[tried.long() + first])
    return tried.gather(0, costs.argmin(0, keepdim=True))[0].copysign(x)


def priced_codes(W: Tensor, sweep: Sweep, step: float, slope: float, bits: Tensor) -> Tensor:
    """Integers q with W ~ step · q, int32 (G, r, n).

    Args:
        W: (G, r, n).
        sweep: of the layer.
        step: Δ.
        slope: λ, what a bit costs in terms of g · e H eᵀ.
        bits: price of every integer, the same for both signs.
    """
    return tried_codes(W, sweep, torch.tensor([step]), torch.tensor([slope]), bits.unsqueeze(0))[0]


@torch.no_grad()
def tried_codes(W: Tensor, sweep: Sweep, steps: Tensor, slopes: Tensor, bits: Tensor) -> Tensor:
    """As `priced_codes` for several steps, (K,), with slopes (K,) and prices (K, …): int32 (K, G, r, n)."""
    order, K = sweep.order.unsqueeze(1).expand_as(W), len(steps)
    sizes = steps.to(W.device, torch.float32).view(K, 1, 1)
    rest = W.gather(2, order).float().movedim(-1, 0).unsqueeze(1) / sizes  # (n, K, G, r)
    U, gain = sweep.upper.float(), sweep.gain.float() * sizes**2
    prices = (slopes.to(bits).unsqueeze(1) * bits[:, LARGEST:]).to(W.device)
    first = torch.arange(K, device=W.device).view(K, 1, 1) * prices.shape[1]
    prices, codes, n = prices.flatten(), torch.empty_like(rest), len(rest)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = torch.empty_like(rest[start:stop])
        for j in range(start, stop):
            d = U[:, j, j].unsqueeze(1)  # (G, 1)
            codes[j] = cheapest(rest[j], gain / d**2, prices, first)
            error = torch.div(rest[j] - codes[j], d, out=errors[j - start])
            rest[j + 1 : stop].addcmul_(U[:, j, j + 1 : stop].mT[:, None, :, None], error, value=-1)
        spread = U[:, start:stop, stop:].mT @ errors.permute(2, 0, 1, 3).flatten(2)
        rest[stop:] -= spread.unflatten(2, (K, -1)).permute(1, 2, 0, 3)
    found = codes.permute(1, 2, 3, 0)
    return torch.empty_like(found).scatter_(3, order.expand_as(found), found).to(torch.int32)
