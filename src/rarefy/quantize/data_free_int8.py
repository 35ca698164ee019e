# SPDX-License-Identifier: Apache-2.0
"""Int8 without data: ranges from batch norms, equalised weights, biases corrected in closed form.

Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias
Correction, 2019, arXiv 1906.04721.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.activations import detach_quantizers, quantize_sites
from rarefy.forms.grid import Grid, along
from rarefy.forms.shadow import bake
from rarefy.graph.fold import fold_batch_norms
from rarefy.loops.gather import Side, gather
from rarefy.loops.matrix import kind_of, matrix_of
from rarefy.measure.quality import batches_of
from rarefy.quantize.bias_correction import (
    RowMean,
    absorb,
    absorbed,
    correct_bias,
    mean_row,
    output_shift,
)
from rarefy.quantize.chains import Pair
from rarefy.quantize.equalise import equalised
from rarefy.quantize.flow import Flow, Value, flow_of
from rarefy.quantize.int8_weights import Codes, channel_axis, coded_weight, store_codes
from rarefy.quantize.kernels import table_of
from rarefy.quantize.moments import Moments, moments_of
from rarefy.quantize.prepared import Prepared, of_layers, prepare, quantise_biases
from rarefy.select import Layer, select
from rarefy.step import Context, Count, Patterns, Positive, Step
from rarefy.task import Inputs, move, tensors_of


@dataclass(frozen=True)
class DataFreeInt8(Step):
    """Integer weights and activations for networks with batch norms, without a single example.

    The range of the inputs is that of the task's example, which may be made up; nothing else is read of it.

    Attributes:
        bits: of weights.
        granularity: one scale for each output ``"channel"`` of a weight, or for the whole ``"tensor"``.
        equalise: whether neighbouring layers' channels get equal ranges first.
        clips: what happens to ReLU6 before that, see `equalise`.
        absorb: whether high biases move on into the next layer.
        correction: of what rounding adds to mean outputs: ``"analytic"`` from the batch norms,
            ``"empirical"`` from calibration data, which it then needs, or ``"none"``.
        deviations: half width of the ranges of activations, in standard deviations.
        examples: of calibration, for ``"empirical"`` only.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    granularity: Literal["channel", "tensor"] = "channel"
    equalise: bool = True
    clips: Literal["keep", "replace"] = "keep"
    absorb: bool = True
    correction: Literal["analytic", "empirical", "none"] = "analytic"
    deviations: Positive = 6.0
    examples: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"
    fixes_ranges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction == "empirical":
            object.__setattr__(self, "needs", self.needs | {"calibration"})

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Folds, equalises, absorbs, places, rounds, corrects."""
        example = move(context.task.example, context.device)
        detach_quantizers(bake(model.eval()))
        norms = dict(model.named_modules())
        folded = fold_batch_norms(model, example)
        statistics = {layer: statistics_of(norms[norm]) for layer, norm in folded}
        pairs, replaced = self.prepare_weights(model, example, statistics)
        prepared = prepare(model, example, table_of(context.runtime), self.layers, self.exclude)
        flow = flow_of(prepared.calls, prepared.floating, prepared.runtime)
        moments = moments_of(model, flow, statistics, inputs_of(example))
        ranges = ranges_of(prepared, moments, self.deviations)
        self.round(prepared, ranges, rows_read(model, flow, moments), context)
        placed, grid = prepared.placement, prepared.runtime.activations
        quantize_sites(model, ranges, lambda _: grid, placed.unrounded)
        context.record.update(
            folded_norms=len(folded), equalised_pairs=len(pairs), replaced_clips=len(replaced),
            ranges=ranges, integer_calls=list(placed.integer),
        )  # fmt: skip
        return model

    def prepare_weights(
        self, model: nn.Module, example: Inputs, statistics: dict[str, Moments]
    ) -> tuple[list[Pair], list[str]]:
        """Equalises and absorbs; `statistics` follow."""
        if not self.equalise:
            return [], []
        within = {
            layer.name
            for layer in select(model, self.layers, exclude=of_layers(model, self.exclude))
        }
        pairs, factors, replaced = equalised(model, example, self.clips, 20, within)
        for path, s in factors.items():
            if path in statistics:
                found = statistics[path]
                statistics[path] = replace(
                    found, mean=found.mean / s, variance=found.variance / s.square()
                )
        for pair in pairs if self.absorb else ():
            if pair.first in statistics and pair.between == ("relu",) and pair.whole:
                found = statistics[pair.first]
                c = absorbed(found.mean, found.variance)
                absorb(model.get_submodule(pair.first), model.get_submodule(pair.second), c)
                statistics[pair.first] = replace(found, mean=found.mean - c)
        return pairs, replaced

    def round(
        self,
        prepared: Prepared,
        ranges: dict[str, tuple[float, float]],
        rows: dict[str, Tensor],
        context: Context,
    ) -> None:
        """Stores codes; what they add to mean outputs is taken off the biases before these are rounded."""
        scales = prepared.scales(ranges)
        if self.correction != "analytic":
            rows = self.measured_rows(prepared, context) if self.correction == "empirical" else {}
        for shared in prepared.weights:
            layer, corrected = shared[0], len(shared) == 1 and shared[0].name in rows
            before = matrix_of(layer).clone() if corrected else None
            store_codes(shared, self.codes(shared, scales))
            if before is not None:
                error = matrix_of(layer) - before
                correct_bias(layer.module, output_shift(error, rows[layer.name]))
        if prepared.runtime.bias == "int32":
            quantise_biases(prepared.model, prepared.placement, scales)

    def codes(self, shared: list[Layer], scales: dict[str, float]) -> Codes:
        """A weight as integers; with one scale for the whole weight all channels have the widest."""
        found = coded_weight(shared, scales, self.bits)
        if self.granularity == "channel":
            return found
        w, grid = shared[0].weight.detach().float(), Grid(self.bits, narrow=True)
        scale = torch.full_like(found.scale, float(w.abs().max()) / grid.high)
        codes = (w / along(scale, found.axis, w.dim())).round_().clamp_(grid.low, grid.high)
        return Codes(codes.to(torch.int8), scale, channel_axis(shared[0].module), self.bits)

    def measured_rows(self, prepared: Prepared, context: Context) -> dict[str, Tensor]:
        """The mean row that each layer multiplies, over the calibration data."""
        paths = [s[0].name for s in prepared.weights if kind_of(s[0].module)]
        wanted: dict[tuple[str, Side], RowMean] = {(path, "rows"): RowMean() for path in paths}
        found = gather(
            prepared.model, batches_of(context.task, "calibration", self.examples), wanted
        )
        means = {path: found[path, "rows"].mean() for path in paths}
        return {path: mean for path, mean in means.items() if mean is not None}


def statistics_of(norm: Any) -> Moments:
    """Mean and variance of what a batch norm gives."""
    ones = torch.ones_like(norm.running_mean, dtype=torch.float64)
    gamma = ones if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(ones) if norm.bias is None else norm.bias.double()
    variance = norm.running_var.double()
    return Moments(beta.detach(), (gamma.square() * variance / (variance + norm.eps)).detach())


def inputs_of(example: Inputs) -> dict[str, Moments]:
    """Inputs as their example lets expect them: its ends, spread evenly over all channels."""
    found = {}
    for number, tensor in enumerate(tensors_of(example)):
        if tensor.is_floating_point() and tensor.dim() > 1:
            low, high = (float(end) for end in tensor.aminmax())
            ones = torch.ones(tensor.shape[1], dtype=torch.float64)
            mean, variance = float(tensor.double().mean()), float(tensor.double().var(correction=0))
            found[f"input#{number}"] = Moments(mean * ones, variance * ones, low, high)
    return found


def ranges_of(
    prepared: Prepared, moments: dict[Value, Moments], deviations: float
) -> dict[str, tuple[float, float]]:
    """The range of every site, the same for all of a group.

    Raises:
        ModelError: nothing is known of what comes by there.
    """
    by_site = {value.site: found.range(deviations) for value, found in moments.items()}
    ranges: dict[str, tuple[float, float]] = {}
    for group in prepared.placement.groups:
        unknown = next((site for site in group if site not in by_site), None)
        if unknown is not None:
            raise ModelError(
                f"the range of what leaves '{unknown}' can't be told without data; use static-int8 with "
                "calibration data, or leave the layers around it float with exclude"
            )
        ends = [by_site[site] for site in group]
        ranges |= dict.fromkeys(group, (min(e[0] for e in ends), max(e[1] for e in ends)))
    return ranges


def rows_read(model: nn.Module, flow: Flow, moments: dict[Value, Moments]) -> dict[str, Tensor]:
    """The mean row that each layer multiplies, by its path, from the moments of what it reads."""
    rows = {}
    for value in flow.values:
        for reader in readers(value):
            module = model.get_submodule(reader.module)
            if kind_of(module) in ("linear", "conv"):
                rows[reader.module] = mean_row(module, moments[value].mean)
    return rows


def readers(value: Value) -> Iterable[Any]:
    """The layers that read a value."""
    return (
        item for item in value.readers if item.function in ("linear", "conv1d", "conv2d", "conv3d")
    )
