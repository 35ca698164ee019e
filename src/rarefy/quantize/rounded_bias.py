# SPDX-License-Identifier: Apache-2.0
"""Biases as integer kernels add them, in steps of input scale times weight scale, while a network trains."""

from typing import ClassVar

import torch
from torch import Tensor

from rarefy.forms.shadow import Form
from rarefy.quantize.learned_step import StraightThrough
from rarefy.quantize.training_grids import below_grid, grid_of
from rarefy.quantize.training_quantizers import TrainedQuantizer
from rarefy.select import Layer


class RoundedBias(Form):
    """Rounds a bias to the steps of its layer; the gradient goes straight through.

    Args:
        layer: whose weight wears a `TrainedWeight`.
        quantizer: of what the layer reads.
    """

    kind: ClassVar[str] = "quantised"

    def __init__(self, layer: Layer, quantizer: TrainedQuantizer) -> None:
        super().__init__()
        self.sources = (layer, quantizer)  # in a tuple, or they would be registered a second time

    def step(self) -> Tensor:
        """(channels,) input scale times the scale of the weight as it is stored."""
        layer, quantizer = self.sources
        form = grid_of(layer)
        if form is None:
            raise TypeError(f"'{layer.name}' wears no grid whose steps its bias could have")
        return form.affine(below_grid(layer))[0] * 2.0**-form.shift * quantizer.affine()[0]

    @torch.no_grad()
    def correction(self, b: Tensor) -> Tensor:
        """What rounding adds to a bias."""
        step = self.step()
        return (b / step).round() * step - b

    def forward(self, b: Tensor) -> Tensor:
        return StraightThrough.apply(b, b.detach() + self.correction(b.detach()))

    def right_inverse(self, b: Tensor) -> Tensor:
        return b
