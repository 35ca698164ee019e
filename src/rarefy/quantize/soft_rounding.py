# SPDX-License-Identifier: Apache-2.0
"""Whether each weight is rounded up or down, as something that can be learned.

Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down? Adaptive Rounding for Post-Training Quantization,
2020, arXiv 2004.10568, equations 21 to 24.
"""

import torch
from torch import Tensor, nn

from rarefy.forms.grid import Grid, along
from rarefy.quantize.training_grids import Affine, TrainedWeight

ZETA, GAMMA = 1.1, -0.1  # how far the sigmoid is stretched beyond [0, 1]


def rectified_sigmoid(V: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) · (zeta - gamma) + gamma, 0, 1); 1/2 at 0."""
    return (torch.sigmoid(V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The V with h(V) = h, for h in [0, 1]."""
    share = (h - GAMMA) / (ZETA - GAMMA)
    return torch.log(share / (1 - share))


def indecision(h: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2h - 1|^beta: 0 where all is decided, 1 for each that stands in the middle."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def annealed_beta(progress: float, start: float = 20.0, end: float = 2.0) -> float:
    """beta falls along a half cosine, so that undecided weights are left in peace first."""
    turn = torch.cos(torch.tensor(progress).clamp(0, 1) * torch.pi)
    return end + 0.5 * (start - end) * (1 + float(turn))


class SoftRounding(TrainedWeight):
    """A weight between the code below and the code above it: s · clip(floor(w / s) + h(V), low, high).

    What is exactly zero stays so. The start is the weight itself, where it is within the grid.

    Args:
        w: the weight.
        scale: (channels,) s.
        grid: signed, symmetric.
        axis: of the channels.

    Attributes:
        hard: whether h is 0 or 1 and nothing in between.
    """

    scale: Tensor

    def __init__(self, w: Tensor, scale: Tensor, grid: Grid, axis: int) -> None:
        super().__init__(grid, axis)
        self.hard = False
        self.register_buffer("scale", scale)
        place = w / along(scale, axis, w.dim())
        self.V = nn.Parameter(inverse_rectified_sigmoid(place - place.floor()))

    def affine(self, w: Tensor) -> Affine:
        return self.scale, torch.zeros_like(self.scale, dtype=self.grid.dtype)

    def share(self) -> Tensor:
        """h(V), or its decision."""
        return (self.V >= 0).to(self.V.dtype) if self.hard else rectified_sigmoid(self.V)

    def rounded(self, w: Tensor) -> Tensor:
        s = along(self.scale, self.axis, w.dim())
        codes = ((w / s).floor() + self.share()).clamp(self.grid.low, self.grid.high)
        return torch.where(w == 0, 0.0, codes * s)
