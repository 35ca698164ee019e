# SPDX-License-Identifier: Apache-2.0
"""Weights on grids whose steps are trained, or follow the weights.

Each form knows the grid that it stands for at the moment (`affine`), so that it can be replaced by codes when
the training is over.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from rarefy.forms.grid import Grid, along, grid_for_range
from rarefy.forms.operators import fake_quantize
from rarefy.forms.pairs import rows_of
from rarefy.forms.shadow import Form, forms_of
from rarefy.quantize.int8_weights import weight_codes
from rarefy.quantize.learned_step import LEAST, StraightThrough, learned_round
from rarefy.select import Layer, stored_parameter

Affine = tuple[Tensor, Tensor]  # scale and zero point


class TrainedWeight(Form):
    """A weight on a symmetric grid in the making.

    Args:
        grid: signed, symmetric.
        axis: of the channels.
        within: groups of the convolution (1 for other layers) if pairs of 8-bit codes shall stay within
            16 bits (see `rarefy.forms.pairs`), or None.

    Attributes:
        frozen: its steps no longer learn.
        shift: bits by which codes are shifted up when they are stored, see `rarefy.quantize.layout`.
    """

    kind: ClassVar[str] = "quantised"

    def __init__(self, grid: Grid, axis: int, within: int | None = None) -> None:
        super().__init__()
        self.grid, self.axis, self.within, self.frozen, self.shift = grid, axis, within, False, 0

    def affine(self, w: Tensor) -> Affine:
        """The present steps and zeros, (channels,) each, of the weight that goes in."""
        raise TypeError(f"{type(self).__name__} defines no affine(w)")

    def rounded(self, w: Tensor) -> Tensor:
        """The weight on its grid."""
        raise TypeError(f"{type(self).__name__} defines no rounded(w)")

    def forward(self, w: Tensor) -> Tensor:
        y = self.rounded(w)
        rows = None if self.within is None else rows_of(w.detach(), self.axis, self.within)
        if rows is None:
            return y
        with torch.no_grad():
            scale = self.affine(w)[0]
            codes = weight_codes(w, scale, self.grid, self.axis, rows)
            kept = codes * along(scale, self.axis, w.dim())
        return StraightThrough.apply(y, kept)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w

    def keep_valid(self) -> None:
        """Called after every step of the optimiser."""


class TrainedGrid(TrainedWeight):
    """Its steps are learned (LSQ), one for each channel; `scale` is where they start."""

    zero_point: Tensor

    def __init__(self, scale: Tensor, grid: Grid, axis: int, within: int | None = None) -> None:
        super().__init__(grid, axis, within)
        self.scale = nn.Parameter(scale.clone())
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=grid.dtype))

    def affine(self, w: Tensor) -> Affine:
        return self.scale.detach(), self.zero_point

    def rounded(self, w: Tensor) -> Tensor:
        scale = self.scale.detach() if self.frozen else self.scale
        return learned_round(w, scale, self.zero_point, self.axis, self.grid.low, self.grid.high)

    @torch.no_grad()
    def keep_valid(self) -> None:
        self.scale.clamp_(min=LEAST)


class FollowingGrid(TrainedWeight):
    """Its steps follow the largest value of each channel; the gradient goes straight through."""

    @torch.no_grad()
    def affine(self, w: Tensor) -> Affine:
        reach = w.detach().abs().amax([i for i in range(w.dim()) if i != self.axis])
        return grid_for_range(-reach, reach, self.grid)

    def rounded(self, w: Tensor) -> Tensor:
        scale, zero_point = self.affine(w)
        ends = self.axis, self.grid.low, self.grid.high
        return StraightThrough.apply(w, fake_quantize(w.detach(), scale, zero_point, *ends))


def grid_of(layer: Layer) -> TrainedWeight | None:
    """The grid on a weight, which stands above everything else."""
    forms = forms_of(layer.module, layer.tensor)
    return forms[-1] if forms and isinstance(forms[-1], TrainedWeight) else None


def below_grid(layer: Layer) -> Tensor:
    """A weight as it goes into its grid."""
    w: Tensor = stored_parameter(layer.module, layer.tensor)
    for form in forms_of(layer.module, layer.tensor)[:-1]:
        w = form(w)
    return w.detach()
