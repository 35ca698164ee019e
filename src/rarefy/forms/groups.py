# SPDX-License-Identifier: Apache-2.0
"""Matrices on a uniform grid with a step for every few neighbours of a row, in up to 8 bits."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.forms.grid import Grid, from_codes, to_codes
from rarefy.forms.shadow import Form


def in_groups(matrix: Tensor, size: int) -> Tensor:
    """(rows, columns) as (rows * groups, size); the last group of a row is filled up with zeros."""
    return F.pad(matrix, (0, -matrix.shape[1] % size)).reshape(-1, size)


def from_groups(groups: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `in_groups`: a matrix of that shape."""
    return groups.reshape(shape[0], -1)[:, : shape[1]]


@torch.library.custom_op("rarefy::dequantize_groups", mutates_args=())
def dequantize_groups(
    codes: Tensor, scale: Tensor, zero_point: Tensor, size: int, bits: int
) -> Tensor:
    """scale * (codes - zero_point) with one scale for every `size` columns of a row.

    Args:
        codes: (rows, columns).
        scale, zero_point: (rows, groups).
        size: columns of a group.
        bits: in which an exporter may store the codes, 4 or 8.
    """
    split = in_groups(codes, size)
    values = from_codes(split, scale.reshape(-1), zero_point.reshape(-1), 0)
    return from_groups(values, codes.shape).contiguous()


@dequantize_groups.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, size: int, bits: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


class InGroups(Form):
    """Codes as they are stored; exported as a blocked DequantizeLinear over 4-bit or 8-bit integers.

    Args:
        scale, zero_point: (rows, groups).
        size: columns of a group.
        grid: the integers.
        shape: of the weight, whose codes lie there as (rows, columns): all axes but the first are one.
    """

    kind: ClassVar[str] = "quantised"
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, scale: Tensor, zero_point: Tensor, size: int, grid: Grid, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.size, self.bits, self.signed = size, grid.bits, grid.signed
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @property
    def stored_bits(self) -> int:
        """Bits of a code in an ONNX file; groups of an odd size take 8, since OpenVINO misreads them in 4."""
        return 4 if self.bits <= 4 and not self.size % 2 else 8

    def forward(self, codes: Tensor) -> Tensor:
        bits = self.stored_bits
        weight = dequantize_groups(codes, self.scale, self.zero_point, self.size, bits)
        return weight if len(self.shape) == 2 else weight.view(self.shape)

    def right_inverse(self, w: Tensor) -> Tensor:
        """Codes stay as they are; floats become the nearest codes."""
        if not w.is_floating_point():
            return w
        grid = Grid(self.bits, self.signed)
        scale, zero_point = self.scale.reshape(-1), self.zero_point.reshape(-1)
        rows = w.flatten(1)
        codes = to_codes(in_groups(rows, self.size), scale, zero_point, grid, 0)
        return from_groups(codes, rows.shape).contiguous()

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Is baked already."""
