# SPDX-License-Identifier: Apache-2.0
"""Fixed-point weights: b-bit integers times one scale, taken from the largest absolute value.

With alpha = max |w| and Q = 2^(b-1) - 1: q = clamp(round(w / alpha * Q), -Q, Q) and w ~ alpha / Q * q, an
error of at most alpha / (2 Q). The power-of-two variant (Qm.n of signal processors) has the scale 2^-f with
f = b - 1 - ceil(log2 alpha), so that multiplying by it is a shift.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.affine import OnGrid
from rarefy.forms.grid import Grid, along
from rarefy.graph.fold import output_axis
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, Patterns, Step


def max_abs(w: Tensor, axis: int | None = None) -> Tensor:
    """The largest absolute value, (), or one along `axis`, (channels,)."""
    if axis is None:
        return w.abs().amax()
    return w.abs().amax([i for i in range(w.dim()) if i != axis]) if w.dim() > 1 else w.abs()


def real_scale(alpha: Tensor, bits: int) -> Tensor:
    """alpha / (2^(bits-1) - 1), elementwise; 1 where alpha is 0, so that all codes are 0."""
    return torch.where(alpha > 0, alpha / (2 ** (bits - 1) - 1), torch.ones_like(alpha))


def shift_of(alpha: Tensor, bits: int) -> Tensor:
    """Fractional bits f = bits - 1 - ceil(log2 alpha), elementwise; 0 where alpha is 0.

    The mantissa of frexp is 1/2 just for powers of two, which makes the logarithm's ceiling exact.
    """
    mantissa, exponent = torch.frexp(alpha)
    ceiling = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.where(alpha > 0, bits - 1 - ceiling, torch.zeros_like(ceiling))


def fixed_codes(w: Tensor, scale: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """clamp(round(w / scale), -Q, Q) with Q = 2^(bits-1) - 1, int32; halves are rounded to even.

    Args:
        w: any shape.
        scale: () or, along `axis`, (channels,).
        bits: 2 to 24, so that every code is exact in float32.
    """
    Q = 2 ** (bits - 1) - 1
    return (w / along(scale, axis, w.dim())).round_().clamp_(-Q, Q).to(torch.int32)


def fixed_point(
    w: Tensor, bits: int, axis: int | None = None, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes (int32, shape of `w`) and scale (() or (channels,)): w ~ scale * codes.

    With a real scale no weight is off by more than scale / 2. With a power of two nearly all are not; a
    weight that is exactly a power of two itself may be off by a whole scale, as its code is one too large.

    Examples:
        >>> codes, scale = fixed_point(torch.tensor([-1.0, 0.5, 0.0]), bits=4)
        >>> codes.tolist(), round(float(scale), 4)
        ([-7, 4, 0], 0.1429)
    """
    alpha = max_abs(w, axis)
    scale = (
        torch.exp2(-shift_of(alpha, bits).to(w.dtype)) if power_of_two else real_scale(alpha, bits)
    )
    return fixed_codes(w, scale, bits, axis), scale


@dataclass(frozen=True)
class FixedPoint(Step):
    """Rounds weights to b-bit integers times a scale from their largest absolute value.

    Activations stay float. Training belongs before this step: none that trains reads weights on a grid,
    whose scales would stay those of the weights before.

    Attributes:
        bits: of a weight, sign included.
        granularity: one scale for each output ``"channel"`` or for the whole ``"tensor"``.
        scale: ``"real"``, or ``"power-of-two"`` for arithmetic by shifts.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    granularity: Literal["tensor", "channel"] = "channel"
    scale: Literal["real", "power-of-two"] = "real"
    layers: Patterns = "*"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Puts every selected weight on its grid."""
        grid = Grid(self.bits, signed=True, symmetric=True, narrow=True)
        errors = {}
        for shared in holders(model, select(model, self.layers, exclude=self.exclude)):
            layer, w = shared[0], finite_weight(shared[0])
            axis = output_axis(layer.module) if self.granularity == "channel" else None
            codes, scale = fixed_point(w.float(), self.bits, axis, self.scale == "power-of-two")
            zero_point = torch.zeros_like(scale, dtype=torch.int8)
            form = OnGrid(scale, zero_point, grid, -1 if axis is None else axis)
            clothe(shared, w, form)
            off = codes.to(w.dtype).mul_(along(scale, axis, w.dim())).sub_(w)
            errors[layer.path] = float(off.norm() / w.norm().clamp(min=1e-30))
        context.record["relative_error"] = errors
        return model
