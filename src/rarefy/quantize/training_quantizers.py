# SPDX-License-Identifier: Apache-2.0
"""Quantisers of activations whose ranges are trained, or follow what comes by.

Each knows the affine grid that it stands for at the moment (`affine`), so that it can be replaced by its
stored form when the training is over.
"""

import torch
from torch import Tensor, nn

from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.operators import fake_quantize
from rarefy.quantize.clipping import LEAST as NARROWEST
from rarefy.quantize.clipping import clipped_round, range_scale, ranged_round
from rarefy.quantize.learned_step import LEAST, learned_round

Affine = tuple[Tensor, Tensor]  # scale and zero point


class TrainedQuantizer(nn.Module):
    """A quantiser of activations in the making.

    Args:
        grid: the integers.

    Attributes:
        frozen: its range no longer changes.
        waiting: it lets values pass, but may look at them.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.frozen, self.waiting = grid, False, False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.frozen:
            self.look(x.detach())
        return x if self.waiting else self.rounded(x)

    def look(self, x: Tensor) -> None:
        """Sees what comes by while the range is open."""

    def rounded(self, x: Tensor) -> Tensor:
        """`x` on the present grid."""
        scale, zero_point = self.affine()
        return fake_quantize(x, scale, zero_point, -1, self.grid.low, self.grid.high)

    def affine(self) -> Affine:
        """The present scale and zero point, () each."""
        raise TypeError(f"{type(self).__name__} defines no affine()")

    def keep_valid(self) -> None:
        """Called after every step of the optimiser."""

    def cost(self) -> Tensor | float:
        """What a wide range adds to the loss, before its factor."""
        return 0.0


class LearnedStep(TrainedQuantizer):
    """A learned step (LSQ); the zero point stays where calibration put it."""

    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.scale = nn.Parameter(scale.clone())
        self.register_buffer("zero_point", zero_point)

    def affine(self) -> Affine:
        return self.scale.detach(), self.zero_point

    def rounded(self, x: Tensor) -> Tensor:
        scale = self.scale.detach() if self.frozen else self.scale
        return learned_round(x, scale, self.zero_point, -1, self.grid.low, self.grid.high)

    @torch.no_grad()
    def keep_valid(self) -> None:
        self.scale.clamp_(min=LEAST)


class LearnedClip(TrainedQuantizer):
    """A learned clip behind a ReLU (PACT); its square is charged."""

    def __init__(self, alpha: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.alpha = nn.Parameter(alpha.clone())

    def affine(self) -> Affine:
        scale = self.alpha.detach() / self.grid.high
        return scale, torch.zeros_like(scale, dtype=self.grid.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        return clipped_round(x, self.alpha.detach() if self.frozen else self.alpha, self.grid)

    @torch.no_grad()
    def keep_valid(self) -> None:
        self.alpha.clamp_(min=NARROWEST)

    def cost(self) -> Tensor | float:
        return self.alpha.square()


class LearnedRange(TrainedQuantizer):
    """Both ends of the range are learned."""

    def __init__(self, low: Tensor, high: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.low, self.high = nn.Parameter(low.clone()), nn.Parameter(high.clone())

    def affine(self) -> Affine:
        return range_scale(self.low.detach(), self.high.detach(), self.grid)

    def rounded(self, x: Tensor) -> Tensor:
        low, high = (self.low, self.high)
        return (
            ranged_round(x, low.detach(), high.detach(), self.grid)
            if self.frozen
            else ranged_round(x, low, high, self.grid)
        )

    @torch.no_grad()
    def keep_valid(self) -> None:
        self.low.clamp_(max=0.0)
        self.high.clamp_(min=0.0)
        self.high.copy_(torch.maximum(self.high, self.low + NARROWEST))


class MovingRange(TrainedQuantizer):
    """Ends that follow the batches' extremes as exponential averages (Jacob et al. 2018, section 3.1).

    Args:
        low, high: () where they start.
        grid: the integers.
        momentum: share of the average that is kept at each batch.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, grid: Grid, momentum: float = 0.99) -> None:
        super().__init__(grid)
        self.momentum = momentum
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def look(self, x: Tensor) -> None:
        least, most = torch.aminmax(x)
        self.low.lerp_(least.to(self.low), 1 - self.momentum)
        self.high.lerp_(most.to(self.high), 1 - self.momentum)

    def affine(self) -> Affine:
        return grid_for_range(self.low, self.high, self.grid)
