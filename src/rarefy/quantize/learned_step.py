# SPDX-License-Identifier: Apache-2.0
"""Rounding to a grid whose step is trained together with the weights.

Esser, McKinstry, Bablani, Appuswamy, Modha: Learned Step Size Quantization, 2020, arXiv 1902.08153. The
gradient of the step (equation 3) is that of `rarefy.forms.operators.fake_quantize`; here are the gradient's
share and the start (section 2.2).
"""

import math
from typing import Any

import torch
from torch import Tensor

from rarefy.forms.operators import fake_quantize

LEAST = 1e-8  # a step below it would be lost in float32 rounding


class GradientShare(torch.autograd.Function):
    """Hands a tensor on unchanged, and a share of its gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        """The very same values."""
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times the share."""
        return gradients[0] * ctx.share, None


class StraightThrough(torch.autograd.Function):
    """Puts a value in the place of another; the gradient goes to the other as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        """The value."""
        return value.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient, for what was replaced."""
        return gradients[0], None


def gradient_share(count: int, high: int) -> float:
    """g = 1 / sqrt(N · Q_P), which balances a step's gradient with that of what it rounds.

    Args:
        count: N: weights that share the step, or features of one example.
        high: Q_P, the highest code.
    """
    return 1 / math.sqrt(max(count, 1) * max(high, 1))


def initial_step(mean_abs: Tensor, high: int) -> Tensor:
    """2 · mean |v| / sqrt(Q_P), the paper's start."""
    return (2 * mean_abs / math.sqrt(max(high, 1))).clamp(min=LEAST)


def learned_round(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Tensor:
    """`x` on the grid; its gradient passes inside the range, the step's is equation 3 times g.

    Args:
        x: weights, or activations with examples on the first axis.
        scale: () or (channels,) steps.
        zero_point: integer codes like `scale`.
        axis: of the channels; -1 for one step, which is then taken for one of activations.
        low, high: codes.
    """
    count = x.numel() // max(x.shape[0] if axis < 0 and x.dim() else scale.numel(), 1)
    share = gradient_share(count, high)
    return fake_quantize(x, GradientShare.apply(scale, share), zero_point, axis, low, high)
