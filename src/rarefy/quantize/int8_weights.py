# SPDX-License-Identifier: Apache-2.0
"""Weights and biases as the integers that a runtime multiplies and adds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid, along, grid_for_range, to_codes
from rarefy.forms.pairs import like, limited, rows_of, safe_scale, starts_of
from rarefy.forms.shadow import find
from rarefy.graph.fold import output_axis
from rarefy.quantize.tied import clothe, clothe_one, finite_weight
from rarefy.select import Layer

INT32 = 2**30  # half of the largest 32-bit bias
BLOCK = 1 << 20  # entries that are worked on together
HALF = 2.0**-24, 65504.0  # the least and the largest 16-bit float
COARSER = 2.0**-9  # share of itself, or of the largest, by which a scale may grow


def channel_axis(module: nn.Module) -> int:
    """The axis of a module's weight that counts its outputs."""
    return 1 if type(module).__name__.endswith("Conv1D") else output_axis(module)


def weight_scale(w: Tensor, grid: Grid, axis: int, choice: str, steps: int = 60) -> Tensor:
    """One scale for each channel, (channels,): of the largest absolute value, or of least squared error.

    Args:
        w: any shape.
        grid: symmetric.
        axis: of the channels.
        choice: ``"minmax"`` or ``"mse"``.
        steps: ranges that ``"mse"`` tries, down to 30 % of the largest value.
    """
    others = [i for i in range(w.dim()) if i != axis]
    reach = w.abs().amax(others)
    scale, zero_point = grid_for_range(-reach, reach, grid)
    if choice == "minmax":
        return scale
    least = torch.full_like(scale, float("inf"))
    found = scale
    for share in torch.linspace(1.0, 0.3, steps):
        tried = grid_for_range(-reach * share, reach * share, grid)[0]
        rounded = to_codes(w, tried, zero_point, grid, axis) * along(tried, axis, w.dim())
        error = (rounded - w).square().sum(others)
        found, least = torch.where(error < least, tried, found), torch.minimum(error, least)
    return found


def held_in_half(scale: Tensor) -> Tensor:
    """The least scales not below these that 16-bit floats hold, so that a file needs no more for them.

    They are a thousandth wider at most where they exceed 6e-5. Those of channels that are all but switched
    off may grow by a small share of the largest scale, so no weight is rounded more coarsely than those of
    the largest channel are. The scales stay as they are where 16 bits are too few for one of them.

    Args:
        scale: (channels,) positive, float32.
    """
    least, largest = HALF
    step = torch.ldexp(torch.ones_like(scale), torch.frexp(scale)[1] - 11).clamp(min=least)
    wider = (scale / step).ceil() * step
    room = COARSER * torch.maximum(scale, scale.max() / 2)
    fits = bool((wider <= (scale + room).clamp(max=largest)).all())
    return wider if fits else scale


def weight_codes(w: Tensor, scale: Tensor, grid: Grid, axis: int, rows: Tensor | None) -> Tensor:
    """The nearest codes, int8; where `rows` are given no pair of them exceeds 16 bits.

    Args:
        w: any shape.
        scale: (channels,).
        grid: symmetric.
        axis: of the channels.
        rows: what `rarefy.forms.pairs.rows_of` made of `w`, or None.
    """
    if rows is None:
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
        return to_codes(w, scale, zero_point, grid, axis)
    starts, parts = starts_of(w), []
    for part, s in in_blocks(rows, scale):
        codes = (part / s.unsqueeze(1)).round_().clamp_(grid.low, grid.high)
        parts.append(limited(codes, starts).to(torch.int8))
    return like(torch.cat(parts), w, axis)


def in_blocks(rows: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some channels at a time, so that what is computed of them takes little memory."""
    each = max(1, BLOCK // max(rows[0].numel(), 1))
    return zip(rows.split(each), scale.split(each), strict=True)


@dataclass(frozen=True)
class Codes:
    """A weight as integers.

    Attributes:
        codes: int8, of the weight's shape.
        scale: (channels,).
        axis: of the channels.
        bits: of the grid.
    """

    codes: Tensor
    scale: Tensor
    axis: int
    bits: int

    def dequantised(self) -> Tensor:
        """The values, float32."""
        return self.codes.float().mul_(along(self.scale, self.axis, self.codes.dim()))


@torch.no_grad()
def coded_weight(
    shared: list[Layer],
    scales: Mapping[str, float],
    bits: int = 8,
    choice: str = "minmax",
    overflow: str = "avoid",
    half: bool = True,
) -> Codes:
    """A weight on a symmetric grid.

    A runtime adds a bias in 32-bit steps of input scale times weight scale. Channels that a batch norm has
    all but switched off have tiny weights and an ordinary bias, which would not fit: their scales are wider.

    Args:
        shared: the layers that hold the weight.
        scales: of what is fed to layers, by path.
        bits: of the grid.
        choice: see `weight_scale`.
        overflow: ``"avoid"`` keeps pairs of codes within 16 bits, see `rarefy.forms.pairs`.
        half: whether scales are made such as 16 bits hold.
    """
    w = finite_weight(shared[0]).float()
    grid, axis = (
        Grid(bits, signed=True, symmetric=True, narrow=True),
        channel_axis(shared[0].module),
    )
    scale, rows = weight_scale(w, grid, axis, choice), None
    if overflow == "avoid" and bits == 8 and any(layer.name in scales for layer in shared):
        rows = rows_of(w, axis, getattr(shared[0].module, "groups", 1))
    if rows is not None:
        starts = starts_of(w)
        parts = [safe_scale(r, s, grid.high, starts) for r, s in in_blocks(rows, scale)]
        scale = torch.cat(parts)
    for layer in shared:
        bias = getattr(layer.module, "bias", None)
        if layer.name in scales and isinstance(bias, Tensor) and bias.shape == scale.shape:
            scale = torch.maximum(scale, bias.detach().abs() / (scales[layer.name] * INT32))
    scale = held_in_half(scale) if half else scale
    return Codes(weight_codes(w, scale, grid, axis, rows), scale, axis, bits)


def store_codes(shared: list[Layer], found: Codes) -> None:
    """Puts codes in the place of a weight, in all layers that share it."""
    zero_point = torch.zeros_like(found.scale, dtype=torch.int8)
    clothe(shared, found.codes, Quantised(found.scale, zero_point, found.axis, found.bits))


def quantise_bias(layer: nn.Module, input_scale: float) -> None:
    """Rounds the bias of a layer to 32-bit steps of input scale times weight scale, as kernels add it."""
    weight, bias = find(layer, Quantised), getattr(layer, "bias", None)
    if weight is None or not isinstance(layer, (nn.Linear, _ConvNd)) or bias is None:
        return
    scale = weight.scale * input_scale
    codes = torch.round(bias.double() / scale.double()).to(torch.int32)
    clothe_one(layer, "bias", codes, Quantised(scale, torch.zeros_like(codes), axis=0, bits=32))
