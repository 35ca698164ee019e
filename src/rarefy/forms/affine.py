# SPDX-License-Identifier: Apache-2.0
"""Weights on a uniform grid: rounded in the making, integer codes once baked."""

from typing import ClassVar

from torch import Tensor, nn

from rarefy.forms.grid import Grid, to_codes
from rarefy.forms.operators import dequantize, fake_quantize
from rarefy.forms.shadow import Form, dress, unparametrize


class OnGrid(Form):
    """Rounds a float weight to its grid in every forward pass; the gradient goes straight through.

    Args:
        scale, zero_point: () or (channels,).
        grid: the integers.
        axis: of the channels; -1 for one scale.
    """

    kind: ClassVar[str] = "quantised"
    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int = -1) -> None:
        super().__init__()
        self.bits, self.signed, self.symmetric, self.narrow = (
            grid.bits,
            grid.signed,
            grid.symmetric,
            grid.narrow,
        )
        self.axis = axis
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @property
    def grid(self) -> Grid:
        """The integers that the codes may be."""
        return Grid(self.bits, self.signed, self.symmetric, self.narrow)

    def forward(self, w: Tensor) -> Tensor:
        return fake_quantize(
            w, self.scale, self.zero_point, self.axis, self.grid.low, self.grid.high
        )

    def right_inverse(self, w: Tensor) -> Tensor:
        return w

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stores codes, scale and zero point; the weight is dequantised when it is asked for."""
        axis = None if self.axis < 0 else self.axis
        codes = to_codes(weight, self.scale, self.zero_point, self.grid, axis)
        unparametrize(module, name)
        setattr(module, name, nn.Parameter(codes, requires_grad=False))
        dress(module, name, Quantised(self.scale, self.zero_point, self.axis, self.bits))


class Quantised(Form):
    """Integer codes as they are stored; exported as DequantizeLinear over an int8 initialiser.

    Args:
        scale, zero_point: () or (channels,).
        axis: of the channels; -1 for one scale.
        bits: of the grid that the codes came from.
    """

    kind: ClassVar[str] = "quantised"
    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int = -1, bits: int = 8) -> None:
        super().__init__()
        self.axis, self.bits = axis, bits
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        return dequantize(codes, self.scale, self.zero_point, self.axis)

    def right_inverse(self, w: Tensor) -> Tensor:
        """Codes stay as they are when they are handed over as codes."""
        if not w.is_floating_point():
            return w
        grid = Grid(8, signed=True)
        return to_codes(w, self.scale, self.zero_point, grid, None if self.axis < 0 else self.axis)

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Is baked already."""
