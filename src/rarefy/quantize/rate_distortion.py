# SPDX-License-Identifier: Apache-2.0
"""Weights on grids whose steps and integers cost the fewest bits for the harm that they do.

One slope λ, the harm that a bit is worth, rules all layers: it sets each layer's step and prices each
integer, so that no layer could give up a bit more cheaply than another. Harm is the change of the network's
outputs to second order: second moments of a layer's inputs times, for each row, the mean square of the
outputs' gradient along random directions. See `rarefy.quantize.priced_rounding` for the rounding itself.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.graph.fold import fold_batch_norms
from rarefy.loops.matrix import kind_of
from rarefy.loops.walk import Visit, walk
from rarefy.measure.quality import batches_of
from rarefy.quantize.entropy_penalty import LearnedGrid
from rarefy.quantize.priced_rounding import (
    LARGEST,
    Sweep,
    prepare,
    priced_codes,
    prices_of,
    step_for,
)
from rarefy.quantize.row_gains import as_rows, gradient_energy, grouped, moments_of, row_gains
from rarefy.quantize.tied import clothe, clothe_one, finite_weight, holders
from rarefy.select import Layer, select
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.store.coding import encode_tensor
from rarefy.task import move

STEPS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
"""Steps, in standard deviations of a weight, at which a layer's rate is tried."""

ROWS = 96  # of a layer, on which they are tried
DIRECTIONS = 64  # examples whose gradients are looked at
ROUNDS = 3
SLACK = 0.01


@dataclass
class Rate:
    """How many bits a layer takes at a slope: points (log2 of the slope, bits), slopes falling."""

    weights: int
    points: list[tuple[float, float]] = field(default_factory=list)

    def bits(self, slope: float) -> float:
        """Between the points linear, from the last one down to nothing within three doublings of the step."""
        x, y = zip(*sorted(self.points), strict=True)
        x, y = (*x, x[-1] + 6), (*y, 0.0)
        return float(np.interp(slope, x, y))


@dataclass(frozen=True)
class RateDistortion(Step):
    """Rounds weights and biases to grids, trading bits for harm at one slope in all layers; no training.

    Attributes:
        bits: that a weight shall take on average in the file, biases included.
        examples: of the calibration data that are looked at.
        damping: of the inputs' second moments, as a share of their mean.
        fold: whether batch norms are folded into the layers first, so that they need no bits.
        layers, exclude: which layers, see `rarefy.select.select`; their biases come along.
    """

    bits: Annotated[float, Field(gt=0, le=9)] = 3.0
    examples: Count = 128
    damping: OpenFraction = 0.01
    fold: bool = True
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})
    writes: ClassVar[str | None] = "codebook"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Finds the slope that meets the rate, and rounds layer by layer."""
        model.eval()
        if self.fold:
            fold_batch_norms(model, move(context.task.example, context.device))
        chosen = select(model, self.layers, exclude=self.exclude)
        layers = [x for x in chosen if kind_of(x.module) and x.tensor == "weight"]
        layers = [x for x in layers if bool(finite_weight(x).any())]
        if not layers:
            return model
        batches = [*batches_of(context.task, "calibration", self.examples)]
        few = batches_of(context.task, "calibration", min(self.examples, DIRECTIONS))
        with torch.enable_grad():
            energy = gradient_energy(model, few, layers, context.seed)
        rates = {
            visit.layer.name: self.rate(visit, energy[visit.layer.name])
            for visit in walk(model, batches, layers)
        }
        target = self.bits * sum(rate.weights for rate in rates.values())
        slope = slope_for(rates, target)
        originals = {x: (x.stored.detach().clone(), bias_of(x)) for x in layers}
        for left in reversed(range(ROUNDS)):
            grids = {
                visit.layer.name: self.round(visit, energy[visit.layer.name], 2.0**slope)
                for visit in walk(model, batches, layers)
            }
            spent = sum(stored_bits(x) for x in layers if x.name in grids)
            if abs(spent - target) <= SLACK * target or not left:
                break
            slope = slope_for(rates, slope_bits(rates, slope) * target / spent)
            for layer, (weight, bias) in originals.items():
                layer.stored.copy_(weight)
                if bias is not None:
                    layer.module.bias.copy_(bias)  # type: ignore[operator]
        self.dress(model, layers, grids)
        context.record.update(slope=slope, bits=spent, steps={n: g[0] for n, g in grids.items()})
        return model

    def rate(self, visit: Visit, energy: Tensor) -> Rate:
        """The bits that a sample of a layer's rows takes at several slopes."""
        W = grouped(visit.matrix)
        H, _ = moments_of(visit)
        gain = row_gains(W, as_rows(visit.layer, energy), H)
        by_group = max(1, W.shape[0] // ROWS)
        by_row = max(1, W.shape[0] * W.shape[1] // by_group // ROWS)
        some, part = W[::by_group, ::by_row], gain[::by_group, ::by_row]
        sweep = prepare(H[::by_group], part, self.damping)
        unit, spread = step_for(prepare(H, gain, self.damping), 1.0), float(W.std())
        rate = Rate(W.numel())
        for relative in STEPS:
            step = max(relative * spread, float(W.abs().max()) / LARGEST, 1e-30)
            slope = (step / unit) ** 2
            codes = coded(some, sweep, step, slope)
            bits = float(prices_of(codes)[(codes + LARGEST).long()].sum())
            rate.points.append((float(np.log2(slope)), bits * W.numel() / some.numel()))
        return rate

    def round(self, visit: Visit, energy: Tensor, slope: float) -> tuple[float, float]:
        """Rounds a layer and its bias; returns the exponents of their steps."""
        W = grouped(visit.matrix).clone()
        H, mean = moments_of(visit)
        gain = row_gains(W, as_rows(visit.layer, energy), H)
        sweep = prepare(H, gain, self.damping)
        exponent = exponent_of(max(step_for(sweep, slope), float(W.abs().max()) / LARGEST))
        step = step_of(exponent)
        codes = coded(W, sweep, step, slope)
        left = W - step * codes
        visit.put((step * codes).to(W.dtype).reshape(visit.matrix.shape))
        bias = bias_of(visit.layer)
        if bias is None:
            return exponent, 0.0
        bias = bias + (left.double() @ mean.unsqueeze(-1)).flatten().to(bias.dtype)
        fine = float((6 * slope / 0.6931471805599453 / gain.mean()) ** 0.5)
        second = exponent_of(max(fine, float(bias.abs().max()) / LARGEST))
        fine = step_of(second)
        visit.layer.module.bias.copy_((bias / fine).round() * fine + 0.0)  # type: ignore[operator]
        return exponent, second

    def dress(
        self, model: nn.Module, layers: list[Layer], grids: dict[str, tuple[float, float]]
    ) -> None:
        """Puts the grids on, so that the weights stay what they are whatever follows."""
        for shared in holders(model, [x for x in layers if x.name in grids]):
            layer, (exponent, second) = shared[0], grids[shared[0].name]
            clothe(shared, layer.weight.detach(), LearnedGrid(exponent, LARGEST))
            if bias_of(layer) is not None:
                bias = layer.module.bias.detach()  # type: ignore[operator]
                clothe_one(layer.module, "bias", bias, LearnedGrid(second, LARGEST))


def coded(W: Tensor, sweep: Sweep, step: float, slope: float) -> Tensor:
    """Integers under prices that follow from themselves: of plain rounding first, then of the first try."""
    codes = (W / step).round().clamp(-LARGEST, LARGEST).to(torch.int32)
    for _ in range(2):
        codes = priced_codes(W, sweep, step, slope, prices_of(codes).to(W.device))
    return codes


def slope_bits(rates: dict[str, Rate], slope: float) -> float:
    """Bits of all layers at a slope, given by its log2."""
    return sum(rate.bits(slope) for rate in rates.values())


def slope_for(rates: dict[str, Rate], target: float) -> float:
    """log2 of the slope at which all layers together take `target` bits, by bisection."""
    ends = [x for rate in rates.values() for x, _ in rate.points]
    low, high = min(ends), max(ends) + 6  # bits fall as the slope rises
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope_bits(rates, middle) > target else (low, middle)
    return (low + high) / 2


def stored_bits(layer: Layer) -> float:
    """What the weight coder takes for a layer's weight and bias, in bits."""
    tensors = [layer.weight.detach(), bias_of(layer)]
    return 8.0 * sum(len(encode_tensor(t.cpu().numpy())) for t in tensors if t is not None)


def exponent_of(step: float) -> float:
    """log2 of a step, as float32 keeps it."""
    return float(torch.tensor(step).log2())


def step_of(exponent: float) -> float:
    """The step of an exponent, to the last bit as `LearnedGrid` finds it."""
    return float(torch.tensor(exponent).exp2())


def bias_of(layer: Layer) -> Tensor | None:
    """A copy of a layer's bias, if it has one that is a plain parameter."""
    bias = layer.module._parameters.get("bias")
    return None if bias is None else bias.detach().clone()
