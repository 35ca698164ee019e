# SPDX-License-Identifier: Apache-2.0
"""8-bit integer weights and activations with ranges fixed beforehand, for runtimes that compute in integers.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877; Krishnamoorthi: Quantizing deep convolutional networks for efficient inference,
2018, arXiv 1806.08342 (one scale for each output channel). Batch norms are folded first.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from rarefy.export.inputs import first_examples
from rarefy.loops.heap import kept_blocks
from rarefy.loops.histogram import Histogram
from rarefy.measure.quality import batches_of
from rarefy.quantize.calibration import calibrate, look
from rarefy.quantize.compensated import compensate, eligible, moments_of_layers
from rarefy.quantize.damage import layer_noise
from rarefy.quantize.int8_weights import Codes, coded_weight, store_codes
from rarefy.quantize.kernels import Runtime, table_of
from rarefy.quantize.mean_outputs import correct_means, joined
from rarefy.quantize.output_error import Range, output_errors
from rarefy.quantize.placement import Placement
from rarefy.quantize.prepared import Prepared, of_layers, placement_of, prepare, spread
from rarefy.quantize.ranges import Choice, choose_range, range_candidates
from rarefy.quantize.tied import holders
from rarefy.quantize.weight_layers import tables_of
from rarefy.select import Layer
from rarefy.step import Context, Count, Patterns, Step
from rarefy.task import Inputs, move

TRIED = 8  # examples on which ranges are tried and rounding is compensated
MORE = 4  # times as many for layers that see a row for each token, and few beside their inputs
AVERAGED = 16  # examples on which mean results are measured
JUDGED = 4  # examples on which layers are judged


@dataclass(frozen=True)
class StaticInt8(Step):
    """Integer weights, one scale for each output channel, and 8-bit activations with calibrated ranges.

    What a runtime can't compute in integers stays float, and so does the last output. Tables of embeddings
    are stored in 8 bits, one scale for each row, where the runtime looks codes up.

    Attributes:
        bits: of weights, 2 to 8; stored in 8 each, but coded in fewer.
        range: how ranges of activations are chosen: ``"output"`` (of all others, for each tensor, the one
            that changes least what is computed from it), ``"mse"`` (least squared error), ``"minmax"``,
            ``"percentile"`` or ``"entropy"`` (least divergence).
        percentile: share of the values inside the range, in percent; for ``"percentile"`` only.
        weight_range: of weights: ``"minmax"``, or ``"mse"``, which clips the largest and pays with 2 bits.
        overflow: x86 processors without VNNI add the products of neighbouring weights in 16 bits. ``"avoid"``
            keeps all pairs of codes within them, so that every processor computes the same; ``"allow"`` is
            for machines that are known to have VNNI.
        runtime: for which quantisers are placed: ``"onnxruntime"``, ``"openvino"``, ``"tensorrt"`` or
            ``"litert"``; ``"auto"`` for the one that the result is measured in.
        compensate: whether the rounding errors of a weight's columns make up for each other in what the layer
            computes; else every weight is rounded to the nearest.
        correct: whether biases make up for what rounding does to the mean results of layers.
        examples: at most so many calibration examples are seen.
        layers: which layers, see `rarefy.select.select`.
        exclude: layers that stay float, and modules whose own calls do; ``"first"``, ``"last"``.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    range: Choice | Literal["output"] = "output"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weight_range: Literal["minmax", "mse"] = "minmax"
    overflow: Literal["avoid", "allow"] = "avoid"
    runtime: Literal["auto", "onnxruntime", "openvino", "tensorrt", "litert"] = "auto"
    compensate: bool = True
    correct: bool = True
    examples: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"
    fixes_ranges: ClassVar[bool] = True

    @kept_blocks()
    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Folds, rounds the weights, calibrates, and attaches quantisers to the sites that need one."""
        prepared, ranges = self.ready(model, context)
        codes = self.coded(prepared, ranges, context)
        how = prepared.rounding(ranges, codes)
        noise = layer_noise(model, self.few(context, JUDGED), how)
        if self.correct:
            correct_means(model, joined(self.few(context, AVERAGED)), how)
        tables = self.tables(model) if prepared.runtime.looks_up else []
        prepared.finish(ranges, codes)
        for shared in tables:
            store_codes(shared, coded_weight(shared, {}))
        context.record.update(
            folded_norms=len(prepared.folded),
            ranges=ranges,
            integer_calls=list(prepared.placement.integer),
            sqnr_db={site.rpartition(":")[0]: value for site, value in noise.items()},
        )
        return model

    @torch.no_grad()
    def ready(self, model: nn.Module, context: Context) -> tuple[Prepared, dict[str, Range]]:
        """The network with its batch norms folded, and the range of every site."""
        task, device = context.task, context.device
        table = table_of(context.runtime if self.runtime == "auto" else self.runtime)
        example = move(task.example, device)
        prepared = prepare(model, example, table, self.layers, self.exclude)
        groups = prepared.placement.groups
        histograms = calibrate(model, task, groups, self.examples, device)
        if self.range == "output":
            found = self.tried(prepared, histograms, context)
        else:
            grid = table.activations
            found = {
                name: choose_range(histogram, self.range, grid, self.percentile)
                for name, histogram in histograms.items()
            }
        return prepared, spread(found, groups)

    def tried(
        self, prepared: Prepared, histograms: dict[str, Histogram], context: Context
    ) -> dict[str, Range]:
        """For every group the range that changes least what is computed from it."""
        grid = prepared.runtime.activations
        candidates = {name: range_candidates(h, grid) for name, h in histograms.items()}
        errors = output_errors(
            prepared.model, self.few(context, TRIED), prepared.readers(), candidates, grid
        )
        return {
            name: errors.best(name) or choose_range(histogram, "mse", grid)
            for name, histogram in histograms.items()
        }

    def placement(
        self, model: nn.Module, quantised: set[str], example: Inputs, table: Runtime
    ) -> Placement:
        """Where quantisers go for a network as it is.

        Raises:
            ModelError: not one call could be computed in integers.
        """
        calls, floating = look(model, example)
        return placement_of(model, calls, floating, quantised, table, self.exclude)

    def tables(self, model: nn.Module) -> list[list[Layer]]:
        """Embeddings to be stored in 8 bits, those that share one together."""
        found = tables_of(model, self.layers, of_layers(model, self.exclude))
        return list(holders(model, found))

    def few(self, context: Context, most: int) -> list[Any]:
        """The first calibration examples."""
        few = min(most, self.examples)
        batches = batches_of(context.task, "calibration", few)
        return [move(first_examples(inputs, few), context.device) for inputs in batches]

    def coded(
        self, prepared: Prepared, ranges: dict[str, Range], context: Context
    ) -> dict[str, Codes]:
        """Every weight as integers."""
        codes = prepared.codes(
            ranges, bits=self.bits, choice=self.weight_range, overflow=self.overflow
        )
        if not self.compensate:
            return codes
        fed, paired = prepared.scales(ranges), self.overflow == "avoid" and self.bits == 8
        layers = [
            shared[0]
            for shared in prepared.weights
            if len(shared) == 1 and shared[0].name in fed and eligible(shared[0])
        ]
        poor: list[Layer] = []
        for layer, moment in moments_of_layers(prepared.model, layers, self.few(context, TRIED)):
            if TRIED < moment.count < layer.weight[0].numel() / MORE:
                poor.append(layer)
            else:
                codes[layer.name] = compensate(layer, codes[layer.name], moment.mean(), paired)
        more = self.few(context, MORE * TRIED)
        for layer, moment in moments_of_layers(prepared.model, poor, more):
            codes[layer.name] = compensate(layer, codes[layer.name], moment.mean(), paired)
        return codes
