# SPDX-License-Identifier: Apache-2.0
"""Weights are rounded column after column; what each rounding spoils the columns behind it make good.

Frantar, Ashkboos, Hoefler, Alistarh: GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, 2022, arXiv 2210.17323, section 3 (algorithm 1): optimal brain surgery in a fixed order, with
the Cholesky factor of the inverse Hessian H = 2 X^T X.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid, to_codes
from rarefy.loops.matrix import check_asked, kind_of, output_energy
from rarefy.loops.ridge import inverse_factor
from rarefy.loops.statistics import SecondMoment
from rarefy.loops.walk import Visit, walk
from rarefy.measure.quality import batches_of
from rarefy.quantize.int8_weights import channel_axis, weight_scale
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, Count, Patterns, Positive, Step

BLOCK = 128  # columns after which what lies far behind is brought up to date


def gptq_codes(W: Tensor, H: Tensor, scale: Tensor, grid: Grid, damping: float = 0.01) -> Tensor:
    """The codes of a weight, float64 integers shaped like `W`.

    Args:
        W: (..., out, in).
        H: (..., in, in), up to a factor.
        scale: (..., out) steps.
        grid: symmetric.
        damping: see `inverse_factor`.
    """
    U, W, s = inverse_factor(H, damping), W.double().clone(), scale.double()
    codes = torch.zeros_like(W)
    n = W.shape[-1]
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.zeros_like(W[..., start:end])
        for i in range(start, end):
            w = W[..., i]  # (..., out)
            q = (w / s).round().clamp(grid.low, grid.high)
            codes[..., i] = q
            error = (w - q * s) / U[..., i, i].unsqueeze(-1)
            errors[..., i - start] = error
            W[..., i:end] -= error.unsqueeze(-1) * U[..., i, i:end].unsqueeze(-2)
        W[..., end:] -= errors @ U[..., start:end, end:]
    return codes


@dataclass(frozen=True)
class GPTQ(Step):
    """Rounds weights alone, layer by layer, to what keeps the layer's outputs; activations stay float.

    Attributes:
        bits: of weights.
        damping: share of the mean diagonal that is added to the second moments.
        examples: of calibration, at most.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    damping: Positive = 0.01
    examples: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Visits layer after layer, each behind those that are rounded already."""
        grid = Grid(self.bits, narrow=self.bits == 8)
        chosen = select(model, self.layers, exclude=self.exclude)
        check_asked(chosen, nn.Embedding)
        layers = [x for x in chosen if kind_of(x.module)]
        scales: dict[str, Tensor] = {}
        errors: dict[str, list[float]] = {}
        batches = batches_of(context.task, "calibration", self.examples)
        for visit in walk(model.eval(), batches, layers):
            name = visit.layer.name
            scales[name], errors[name] = self.round(visit, grid)
        for shared in holders(model, [x for x in layers if x.name in scales]):
            scale, axis = scales[shared[0].name], channel_axis(shared[0].module)
            zero_point = torch.zeros_like(scale, dtype=torch.int8)
            codes = to_codes(shared[0].weight.detach(), scale, zero_point, grid, axis)
            clothe(shared, codes, Quantised(scale, zero_point, axis, self.bits))
        context.record["output_errors"] = errors  # of nearest rounding, and what is left
        return model

    def round(self, visit: Visit, grid: Grid) -> tuple[Tensor, list[float]]:
        """Puts a layer's weight on its grid; returns the steps and both errors."""
        w, axis = finite_weight(visit.layer).float(), channel_axis(visit.layer.module)
        scale = weight_scale(w, grid, axis, "mse")
        moment = SecondMoment()
        for x in visit.inputs():
            moment.update(x)
        H, W = moment.mean(), visit.matrix
        rows = W[..., 0].numel()  # a transposed convolution's groups share their steps
        steps = scale.view(W.shape[:-1]) if scale.numel() == rows else scale.expand(W.shape[:-1])
        codes = gptq_codes(W, H, steps, grid, self.damping)
        s = steps.double().unsqueeze(-1)
        nearest = (W / s).round().clamp(grid.low, grid.high) * s
        found = codes * s
        off = [float(output_energy(each - W, H)) for each in (nearest, found)]
        best = found if off[1] <= off[0] else nearest
        visit.put(best.to(W.dtype))
        return scale, [off[0], min(off)]
