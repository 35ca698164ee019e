# SPDX-License-Identifier: Apache-2.0
"""What rounding a weight adds to the mean of its layer's outputs is taken off the bias; high biases move on.

Nagel et al.: Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, arXiv 1906.04721,
sections 4.1.3 (absorption, equations 13 to 15) and 4.2 (correction, equations 16 to 18).
"""

from typing import Any

import torch
from torch import Tensor, nn

from rarefy.loops.matrix import groups_of, matrix_of
from rarefy.quantize.moments import spread_over
from rarefy.select import Layer


def output_shift(error: Tensor, mean: Tensor) -> Tensor:
    """E[eps · x] = eps · E[x], (outputs,).

    Args:
        error: eps = rounded - weight as a matrix, (outputs, inputs) or (groups, outputs, inputs).
        mean: E[x] of the rows that are multiplied, (inputs,) or (groups, inputs).
    """
    return (error.double() @ mean.double().unsqueeze(-1)).flatten()


def mean_row(layer: nn.Module, mean: Tensor) -> Tensor:
    """The mean row of a layer's matrix product from the means of its input channels, (channels,)."""
    matrix, groups = matrix_of(Layer("", layer)), groups_of(layer)
    rows = spread_over(mean.double(), groups, matrix.shape[-1])
    return rows if matrix.dim() == 3 else rows.squeeze(0)


class RowMean:
    """The mean of rows (N, in), or (groups, N, in); streams, see `rarefy.loops.gather`."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Takes rows in."""
        part = x.detach().double().sum(-2)
        self.total = part if self.total is None else self.total + part
        self.count += x.shape[-2]

    def mean(self) -> Tensor | None:
        """(in,) or (groups, in); None before the first row."""
        return None if self.total is None else self.total / self.count


@torch.no_grad()
def correct_bias(layer: Any, shift: Tensor) -> None:
    """Takes a shift (outputs,) off the bias, which is made if there is none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(
            torch.zeros(len(shift), dtype=layer.weight.dtype).to(shift.device)
        )
    layer.bias.sub_(shift.to(layer.bias))


def absorbed(mean: Tensor, variance: Tensor, deviations: float = 3.0) -> Tensor:
    """c = max(0, beta - n · gamma), (channels,): what a ReLU lets pass unchanged in nearly all cases."""
    return (mean - deviations * variance.sqrt()).clamp(min=0.0)


@torch.no_grad()
def absorb(first: Any, second: Any, c: Tensor) -> None:
    """Moves c (channels,) from the outputs of the first layer into the bias of the second: b2 += W2 · c.

    Exact where a ReLU alone stands between the layers, every output of the second sees its whole kernel
    filled, and no channel falls below c.
    """
    shift = output_shift(matrix_of(Layer("", second)), mean_row(second, c))
    correct_bias(first, c)
    correct_bias(second, -shift)
