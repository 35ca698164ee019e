# SPDX-License-Identifier: Apache-2.0
"""Weights on grids whose steps and integers cost the fewest bits for the harm that they do.

One slope λ, the harm that a bit is worth, rules all layers: it sets each layer's step and prices each
integer, so that no layer could give up a bit more cheaply than another. Harm is the change of the network's
outputs to second order: second moments of a layer's inputs times, for each row, the mean square of the
outputs' gradient along random directions. See `rarefy.quantize.priced_rounding` for the rounding itself.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.graph.fold import fold_batch_norms
from rarefy.loops.heap import kept_blocks
from rarefy.loops.matrix import check_asked, kind_of
from rarefy.loops.walk import Visit, walk
from rarefy.measure.quality import batches_of
from rarefy.quantize.entropy_penalty import LearnedGrid
from rarefy.quantize.priced_rounding import (
    LARGEST,
    Sweep,
    prepare,
    prices_of,
    row_scales,
    step_for,
    tried_codes,
)
from rarefy.quantize.priced_tables import round_table, table_harm, table_rate
from rarefy.quantize.rounded_layers import Begun, Copies, Rounded, bias_of, stored_bits
from rarefy.quantize.row_gains import as_rows, gradient_energy, grouped, moments_of, row_gains
from rarefy.quantize.slopes import (
    Rate,
    exponent_of,
    slope_for,
    step_of,
    tried_rate,
)
from rarefy.quantize.tied import clothe, clothe_one, finite_weight, holders
from rarefy.quantize.trellis_rounding import FINER, trellis_codes
from rarefy.select import Layer, is_embedding, select
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import move

ROWS = 96  # of a layer, on which they are tried
DIRECTIONS = 64  # examples whose gradients are looked at
ROUNDS = 3
SLACK = 0.01
FINEST = 1 << 21  # the largest code in terms of the finest step of a layer's rows


@dataclass(frozen=True)
class RateDistortion(Step):
    """Rounds weights and biases to grids, trading bits for harm at one slope in all layers; no training.

    Attributes:
        bits: that a weight shall take on average in the file, biases included.
        examples: of the calibration data that are looked at. Layers of many inputs need many: LeNet-5 at
            0.6 bits a weight errs on 1.13 % of MNIST's test digits with 128 and on 0.77 % with 512.
        damping: of the inputs' second moments, as a share of their mean.
        by_row: whether rows of a layer have steps of their own, powers of two times the layer's, finer ones
            where more depends on them. Transposed and turned layers have one step.
        trellis: whether weights are rounded to a trellis instead of a grid: fewer bytes for several
            times the time. Embeddings, transposed and turned layers stay on grids.
        fold: whether batch norms are folded into the layers first, so that they need no bits.
        layers, exclude: which layers, see `rarefy.select.select`; their biases come along. Embeddings
            have to be asked for, with ``"type:Embedding"``.
    """

    bits: Annotated[float, Field(gt=0, le=9)] = 3.0
    examples: Count = 512
    damping: OpenFraction = 0.01
    by_row: bool = False
    trellis: bool = False
    fold: bool = True
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})
    writes: ClassVar[str | None] = "codebook"

    @kept_blocks()
    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Finds the slope that meets the rate, and rounds layer by layer."""
        begun = self.begun(model, context)
        if begun is not None:
            self.dress(model, begun, self.rounded(model, begun, self.bits), context)
        return model

    def begun(self, model: nn.Module, context: Context) -> Begun | None:
        """What rounding at any rate needs; None where nothing is to be rounded."""
        model.eval()
        if self.fold:
            fold_batch_norms(model, move(context.task.example, context.device))
        chosen = select(model, self.layers, exclude=self.exclude)
        check_asked(chosen)
        chosen = [x for x in chosen if x.tensor == "weight" and bool(finite_weight(x).any())]
        layers = [x for x in chosen if kind_of(x.module)]
        tables = [x for x in chosen if is_embedding(x.module)]
        if not layers and not tables:
            return None
        batches = [*batches_of(context.task, "calibration", self.examples)]
        few = batches_of(context.task, "calibration", min(self.examples, DIRECTIONS))
        with torch.enable_grad():
            energy = gradient_energy(model, few, [*layers, *tables], context.seed)
        rates = {x.name: table_rate(x.weight, table_harm(energy[x.name])) for x in tables}
        rates |= {
            visit.layer.name: self.rate(visit, energy[visit.layer.name])
            for visit in walk(model, batches, layers)
        }
        return Begun(layers, tables, batches, energy, rates, Copies([*layers, *tables]))

    def rounded(self, model: nn.Module, begun: Begun, bits: float) -> Rounded:
        """Rounds the weights in place, to so many bits a weight on average."""
        energy, rates = begun.energy, begun.rates
        target = bits * sum(rate.weights for rate in rates.values())
        slope = slope_for(rates, target)
        for left in reversed(range(ROUNDS)):
            grids = {x.name: put_table(x, energy[x.name], 2.0**slope) for x in begun.tables}
            grids |= {
                visit.layer.name: self.round(visit, energy[visit.layer.name], 2.0**slope)
                for visit in walk(model, begun.batches, begun.layers)
            }
            stored = {x.name: stored_bits(x) for x in begun.all() if x.name in grids}
            spent = sum(stored.values())
            if abs(spent - target) <= SLACK * target or not left:
                break
            for name, taken in stored.items():
                rates[name].correct(slope, taken)
            slope = slope_for(rates, target)
            begun.originals.restore()
        return Rounded(slope, spent, grids)

    def rate(self, visit: Visit, energy: Tensor) -> Rate:
        """The bits that a sample of a layer's rows takes at several slopes."""
        W, sweep, scale, _ = self.weighed(visit, energy)
        by_group = max(1, W.shape[0] // ROWS)
        by_row = max(1, W.shape[0] * W.shape[1] // by_group // ROWS)
        some, unit = W[::by_group, ::by_row], step_for(sweep, 1.0)
        part = Sweep(
            sweep.order[::by_group], sweep.upper[::by_group], sweep.gain[::by_group, ::by_row]
        )
        return tried_rate(W, some.numel(), unit, lambda *tried: coded_at(some, part, *tried))

    def weighed(
        self, visit: Visit, energy: Tensor, stored: bool = False
    ) -> tuple[Tensor, Sweep, Tensor, Tensor]:
        """The weight by rows' scales, what rounding it needs, the scales (G, r, 1), the mean inputs."""
        W = grouped(visit.matrix)
        H, mean = moments_of(visit)
        sweep = prepare(H, row_gains(W, as_rows(visit.layer, energy), H), self.damping, stored)
        scale = torch.ones_like(sweep.gain)
        if self.by_row and in_rows(visit.layer):
            scale = row_scales(sweep).to(W.device)
            sweep = replace(sweep, gain=sweep.gain * scale**2)
        scale = scale.unsqueeze(-1).to(W.dtype)
        return W / scale, sweep, scale, mean

    def round(self, visit: Visit, energy: Tensor, slope: float) -> tuple[float, float]:
        """Rounds a layer and its bias; returns the exponents of their finest steps."""
        along = self.trellis and in_rows(visit.layer)
        W, sweep, scale, mean = self.weighed(visit, energy, along)
        finer, coder = (FINER, coded_along) if along else (1.0, coded)
        least, finest = float(W.abs().max()) / LARGEST, float(scale.min())
        exponent = exponent_of(finest * finer * max(step_for(sweep, slope), least))
        step = step_of(exponent) / finest
        codes = coder(W, sweep, step, slope)
        left = (W - step * codes) * scale
        visit.put((step * codes * scale).to(W.dtype).reshape(visit.matrix.shape))
        bias = bias_of(visit.layer)
        if bias is None:
            return exponent, 0.0
        bias = bias + (left.double() @ mean.unsqueeze(-1)).flatten().to(bias.dtype)
        gain = float((sweep.gain / scale.squeeze(-1) ** 2).mean())
        fine = float((6 * slope / 0.6931471805599453 / gain) ** 0.5)
        second = exponent_of(max(fine, float(bias.abs().max()) / LARGEST))
        fine = step_of(second)
        visit.layer.module.bias.copy_((bias / fine).round() * fine + 0.0)  # type: ignore[operator]
        return exponent, second

    def dress(self, model: nn.Module, begun: Begun, rounded: Rounded, context: Context) -> None:
        """Puts the grids on, so that the weights stay what they are whatever follows."""
        grids = rounded.grids
        for shared in holders(model, [x for x in begun.all() if x.name in grids]):
            layer, (exponent, second) = shared[0], grids[shared[0].name]
            clothe(shared, layer.weight.detach(), LearnedGrid(exponent, FINEST))
            if bias_of(layer) is not None:
                bias = layer.module.bias.detach()  # type: ignore[operator]
                clothe_one(layer.module, "bias", bias, LearnedGrid(second, LARGEST))
        steps = {name: exponents[0] for name, exponents in grids.items()}
        context.record.update(slope=rounded.slope, bits=rounded.bits, steps=steps)


def put_table(layer: Layer, energy: Tensor, slope: float) -> tuple[float, float]:
    """Rounds an embedding; returns the exponent of its step."""
    W, exponent = round_table(layer.weight.detach(), table_harm(energy), slope)
    layer.stored.copy_(W)
    return exponent, 0.0


def in_rows(layer: Layer) -> bool:
    """Whether a row of the layer's matrix is what the first axis of its weight counts."""
    return kind_of(layer.module) in ("linear", "conv")


def coded(W: Tensor, sweep: Sweep, step: float, slope: float) -> Tensor:
    """Integers under prices that follow from themselves: of plain rounding first, then of the first try."""
    return coded_at(W, sweep, torch.tensor([step]), torch.tensor([slope]))[0]


def coded_at(W: Tensor, sweep: Sweep, steps: Tensor, slopes: Tensor) -> Tensor:
    """As `coded` for several steps and slopes, (K,) each: (K, G, r, n)."""
    sizes = steps.to(W.device, W.dtype).view(-1, 1, 1, 1)
    codes = (W / sizes).round().clamp(-LARGEST, LARGEST).to(torch.int32)
    for _ in range(2):
        bits = torch.stack([prices_of(found) for found in codes])
        codes = tried_codes(W, sweep, steps, slopes, bits)
    return codes


def coded_along(W: Tensor, sweep: Sweep, step: float, slope: float) -> Tensor:
    """Integers along a trellis, under prices of their indices that follow from themselves."""
    indices = (W / (2 * step)).round().clamp(-LARGEST, LARGEST).to(torch.int32)
    codes = indices
    for _ in range(2):
        bits = prices_of(indices).to(W.device)
        codes, indices = trellis_codes(W, sweep, step, slope, bits)
    return codes
