# SPDX-License-Identifier: Apache-2.0
"""Activation ranges whose ends are trained: one clip behind a ReLU, or both ends.

Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan: PACT: Parameterized Clipping Activation for
Quantized Neural Networks, 2018, arXiv 1805.06085, equations 1 to 3. Both ends: Jain, Gural, Wu, Dick: Trained
Quantization Thresholds, 2019, arXiv 1903.08066, section 3, with an offset.
"""

import torch
from torch import Tensor

from rarefy.forms.grid import Grid
from rarefy.forms.operators import fake_quantize

LEAST = 1e-6  # a narrower range is widened to it


def clipped_round(x: Tensor, alpha: Tensor, grid: Grid) -> Tensor:
    """clip(x, 0, alpha) on an unsigned grid of scale alpha / (2^k - 1).

    The gradient reaches `x` where 0 <= x < alpha and `alpha`, undiminished, where x >= alpha.

    Args:
        x: any shape.
        alpha: () the clip, > 0.
        grid: unsigned, zero point 0.
    """
    clipped = torch.where(x < alpha, x, alpha)
    scale = (alpha / grid.high).detach()
    zero_point = torch.zeros_like(scale, dtype=grid.dtype)
    return fake_quantize(clipped, scale, zero_point, -1, grid.low, grid.high)


def range_scale(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale (differentiable) and zero point of an affine grid over [low, high], 0 included exactly."""
    scale = (high - low).clamp(min=LEAST) / (grid.high - grid.low)
    zero_point = (grid.low - low.detach() / scale.detach()).round().clamp(grid.low, grid.high)
    return scale, zero_point.to(grid.dtype)


def ranged_round(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """`x` on the affine grid over [low, high], whose ends have gradients.

    An end gets the gradient of all that lies beyond it; inside, with u = (x - low) / scale, the upper end
    gets (round(u) - u) / (levels - 1) and the lower one the negative of it.

    Args:
        x: any shape.
        low, high: () ends, low <= 0 <= high.
        grid: affine.
    """
    scale, zero_point = range_scale(low, high, grid)
    kept = torch.where(x < low, low, torch.where(x > high, high, x))
    return fake_quantize(kept, scale, zero_point, -1, grid.low, grid.high)
