# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of uniform quantisation, stated once: x ~ scale * (code - zero_point)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Which integers codes may be.

    Attributes:
        bits: 2 to 8.
        signed: int or uint codes.
        symmetric: zero point fixed at 0 (signed) or at the middle (unsigned).
        narrow: leaves out the lowest code, so that the signed range is symmetric ([-127, 127]).
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False

    @property
    def low(self) -> int:
        """The lowest code."""
        return (-(2 ** (self.bits - 1)) if self.signed else 0) + int(self.narrow)

    @property
    def high(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that holds the codes."""
        return torch.int8 if self.signed else torch.uint8


def grid_for_range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point with which `grid` covers [low, high] and represents 0 exactly.

    Args:
        low, high: () or (channels,) ends of the range; they are widened to include 0.
        grid: the integers.

    Returns:
        scale (float, > 0; 1 where the range is empty) and zero_point (of the codes' type), like `low`.
    """
    low, high = low.clamp(max=0).double(), high.clamp(min=0).double()
    if grid.symmetric:
        middle = 0 if grid.signed else 2 ** (grid.bits - 1)
        reach = torch.maximum(-low, high)
        scale = reach / min(grid.high - middle, middle - grid.low if not grid.narrow else grid.high)
        zero_point = torch.full_like(scale, middle)
    else:
        scale = (high - low) / (grid.high - grid.low)
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero_point = (grid.low - low / safe).round().clamp(grid.low, grid.high)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    tiny = torch.finfo(torch.float32).tiny
    return scale.clamp(min=tiny), zero_point.to(grid.dtype)


def along(values: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Reshapes (channels,) so that it broadcasts along `axis` of a tensor with so many dimensions."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.view(shape)


def to_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None = None
) -> Tensor:
    """clamp(round(x / scale) + zero_point), rounding half to even, as integers."""
    s, z = along(scale, axis, x.dim()), along(zero_point, axis, x.dim())
    return (torch.round(x / s) + z).clamp(grid.low, grid.high).to(grid.dtype)


def from_codes(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """scale * (codes - zero_point) in float32."""
    s, z = along(scale, axis, codes.dim()), along(zero_point, axis, codes.dim())
    if codes.dtype in (torch.int8, torch.uint8):  # their differences are exact in floats
        return codes.to(s.dtype).sub_(z.to(s.dtype)).mul_(s)
    return (codes.to(torch.int32) - z.to(torch.int32)).to(s.dtype) * s
