# SPDX-License-Identifier: Apache-2.0
"""8-bit integer weights and activations with ranges fixed beforehand, for runtimes that compute in integers.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877; Krishnamoorthi: Quantizing deep convolutional networks for efficient inference,
2018, arXiv 1806.08342 (one scale for each output channel). Batch norms are folded first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.activations import detach_quantizers, quantize_sites
from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid, along, grid_for_range, to_codes
from rarefy.forms.shadow import bake, find
from rarefy.graph.fold import fold_batch_norms, output_axis
from rarefy.loops.histogram import Histogram
from rarefy.quantize.calibration import calibrate, look
from rarefy.quantize.placement import Placement, place
from rarefy.quantize.ranges import Choice, choose_range
from rarefy.quantize.tied import clothe, clothe_one, finite_weight, holders
from rarefy.select import Layer, matcher, select
from rarefy.step import Context, Count, Patterns, Step
from rarefy.task import Inputs, move

ACTIVATIONS = Grid(8, signed=False, symmetric=False)
INT32 = 2**30  # half of the largest 32-bit bias


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


def quantise_weight(
    shared: list[Layer], scales: Mapping[str, float], bits: int, choice: str
) -> None:
    """Stores a weight as codes on a symmetric grid.

    A runtime adds a bias in 32-bit steps of input scale times weight scale. Channels that a batch norm has
    all but switched off have tiny weights and an ordinary bias, which would not fit: their scales are wider.

    Args:
        shared: the layers that hold the weight.
        scales: of what is fed to layers, by path.
        bits: of the grid.
        choice: see `weight_scale`.
    """
    w = finite_weight(shared[0]).float()
    grid, axis = (
        Grid(bits, signed=True, symmetric=True, narrow=True),
        channel_axis(shared[0].module),
    )
    scale = weight_scale(w, grid, axis, choice)
    for layer in shared:
        bias = getattr(layer.module, "bias", None)
        if layer.name in scales and isinstance(bias, Tensor) and bias.shape == scale.shape:
            scale = torch.maximum(scale, bias.detach().abs() / (scales[layer.name] * INT32))
    zero_point = torch.zeros_like(scale, dtype=torch.int8)
    codes = to_codes(w, scale, zero_point, grid, axis)
    clothe(shared, codes, Quantised(scale, zero_point, axis, bits))


def quantise_bias(layer: nn.Module, input_scale: float) -> None:
    """Rounds the bias of a linear layer to 32-bit steps of input scale times weight scale.

    Needed where the result stays float: there ONNX Runtime's integer kernel takes no other bias.
    """
    weight = find(layer, Quantised)
    if weight is None or not isinstance(layer, nn.Linear) or layer.bias is None:
        return
    scale = weight.scale * input_scale
    codes = torch.round(layer.bias.double() / scale.double()).to(torch.int32)
    clothe_one(layer, "bias", codes, Quantised(scale, torch.zeros_like(codes), axis=0, bits=32))


def activation_ranges(
    histograms: dict[str, Histogram], placement: Placement, choice: Choice, percentile: float
) -> dict[str, tuple[float, float]]:
    """The range of every site, the same for all of a group."""
    found = {
        group: choose_range(histograms[group[0]], choice, ACTIVATIONS, percentile)
        for group in placement.groups
    }
    return {site: found[group] for group in placement.groups for site in group}


def input_scales(
    placement: Placement, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """The scale of what is fed to every layer that runs in integers; the least, if it runs more than once."""
    scales: dict[str, float] = {}
    for path, site in placement.feeds:
        low, high = (torch.tensor(end) for end in ranges[site])
        scale = float(grid_for_range(low, high, ACTIVATIONS)[0])
        scales[path] = min(scales.get(path, scale), scale)
    return scales


@dataclass(frozen=True)
class StaticInt8(Step):
    """Integer weights, one scale for each output channel, and 8-bit activations with calibrated ranges.

    What a runtime can't compute in integers stays float, and so does the last output. Without VNNI
    (x86 processors before 2019) products of 8-bit activations and weights may overflow 16 bits inside a
    runtime; with 7 bits they can't.

    Attributes:
        bits: of weights, 2 to 8; stored in 8 each, but coded in fewer.
        range: how ranges of activations are chosen: ``"mse"`` (least squared error), ``"minmax"``,
            ``"percentile"`` or ``"entropy"`` (least divergence).
        percentile: share of the values inside the range, in percent; for ``"percentile"`` only.
        weight_range: of weights: ``"minmax"``, or ``"mse"``, which clips the largest and pays with 2 bits.
        examples: at most so many calibration examples are seen.
        layers: which layers, see `rarefy.select.select`.
        exclude: layers that stay float, and modules whose own calls do; ``"first"``, ``"last"``.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    range: Choice = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weight_range: Literal["minmax", "mse"] = "minmax"
    examples: Count = 512
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Folds, rounds the weights, calibrates, and attaches quantisers to the sites that need one."""
        example = move(context.task.example, context.device)
        detach_quantizers(bake(model.eval()))
        folded = fold_batch_norms(model, example)
        weights = holders(model, select(model, self.layers, exclude=self.exclude))
        names = {layer.name for shared in weights for layer in shared}
        placement = self.placement(model, names, example)
        histograms = calibrate(model, context.task, placement.groups, self.examples, context.device)
        ranges = activation_ranges(histograms, placement, self.range, self.percentile)
        scales = input_scales(placement, ranges)
        for shared in weights:
            quantise_weight(shared, scales, self.bits, self.weight_range)
        for path in placement.float_ends:
            quantise_bias(model.get_submodule(path), scales[path])
        quantize_sites(model, ranges, lambda _: ACTIVATIONS)
        context.record.update(
            folded_norms=len(folded), ranges=ranges, integer_calls=list(placement.integer)
        )
        return model

    def placement(self, model: nn.Module, quantised: set[str], example: Inputs) -> Placement:
        """Where quantisers go.

        Raises:
            ModelError: not one call could be computed in integers.
        """
        calls, floating = look(model, example)
        patterns = (self.exclude,) if isinstance(self.exclude, str) else self.exclude
        fits = [matcher(p) for p in patterns if isinstance(p, str) and not p.startswith("type:")]
        excluded = {path for path, _ in model.named_modules() if any(fit(path) for fit in fits)}
        found = place(calls, floating, quantised, excluded)
        if not found.integer:
            names = ", ".join(sorted(quantised)[:5])
            raise ModelError(
                f"no call of the {type(model).__name__} can be computed in integers: none of its layers "
                f"({names}) was seen to run as a convolution or matrix product; use fixed-point, which "
                "changes weights only"
            )
        return found
