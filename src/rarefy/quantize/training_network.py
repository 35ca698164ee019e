# SPDX-License-Identifier: Apache-2.0
"""A network that rounds while it trains, and its turning into stored integers."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rarefy.forms.activations import (
    ActivationQuantizer,
    ActivationQuantizers,
    detach_quantizers,
    quantizers_of,
)
from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.pairs import rows_of, safe_scale, starts_of
from rarefy.forms.shadow import bake, bake_one, dress, find
from rarefy.loops.histogram import Histogram
from rarefy.loops.modes import device_of
from rarefy.quantize.folded_norm import NormBehindGain, finish_folding, fold_for_training
from rarefy.quantize.int8_weights import INT32, channel_axis, weight_codes, weight_scale
from rarefy.quantize.layout import Layout, report
from rarefy.quantize.learned_step import initial_step
from rarefy.quantize.prepared import quantise_biases
from rarefy.quantize.ranges import centres_of, choose_range
from rarefy.quantize.rounded_bias import RoundedBias
from rarefy.quantize.tied import clothe, finite_weight
from rarefy.quantize.training_grids import (
    FollowingGrid,
    TrainedGrid,
    TrainedWeight,
    below_grid,
    grid_of,
)
from rarefy.quantize.training_quantizers import (
    Affine,
    LearnedClip,
    LearnedRange,
    LearnedStep,
    MovingRange,
    TrainedQuantizer,
)
from rarefy.select import Layer

Way: TypeAlias = Literal["learned-step", "straight-through", "pact", "learned-range"]
Start: TypeAlias = Literal["mse", "mean"]


def dress_for_training(
    model: nn.Module, layout: Layout, method: Way, start: Start = "mse", overflow: str = "avoid"
) -> None:
    """Puts grids on weights and biases and quantisers at sites; norms are folded but still learn.

    Args:
        model: changed in place.
        layout: of it.
        method: how steps and ranges are found while training.
        start: where learned steps begin.
        overflow: ``"avoid"`` keeps pairs of 8-bit codes within 16 bits, see `rarefy.forms.pairs`.
    """
    fold_for_training(model, layout.pairs)
    fed = {path for path, site in layout.placement.feeds} if overflow == "avoid" else set()
    for shared in layout.layers:
        grid = layout.weight_grids.get(shared[0].name)
        if grid is not None:
            within = grid.bits == 8 and any(layer.name in fed for layer in shared)
            form = starting_grid(shared[0], grid, method, start, within)
            form.shift = layout.room(shared)
            for layer in shared:
                dress(layer.module, layer.tensor, form)
    sites: dict[str, nn.Module] = {}
    for group in layout.placement.groups:
        if group[0] in layout.site_grids:
            found = layout.histograms[group[0]], layout.site_grids[group[0]]
            quantizer = starting_quantizer(*found, method, start).to(device_of(model))
            sites |= {layout.training_site(site): quantizer for site in group}
    if sites:
        raw = [(reader, layout.training_site(site)) for reader, site in layout.placement.unrounded]
        ActivationQuantizers(list(sites), list(sites.values()), raw).attach(model)
    if layout.runtime.bias == "int32":
        round_biases(model, layout)


def starting_grid(
    layer: Layer, grid: Grid, method: Way, start: Start, within: bool
) -> TrainedWeight:
    """The grid on which a weight's training begins."""
    w, axis = finite_weight(layer), channel_axis(layer.module)
    groups = int(getattr(layer.module, "groups", 1)) if within else None
    if method in ("straight-through", "pact"):
        return FollowingGrid(grid, axis, groups)
    if start == "mean":
        mean = w.abs().mean([i for i in range(w.dim()) if i != axis])
        return TrainedGrid(initial_step(mean, grid.high), grid, axis, groups)
    scale = weight_scale(w, grid, axis, "mse")
    rows = rows_of(w, axis, groups) if groups is not None else None
    if rows is not None:
        scale = safe_scale(rows, scale, grid.high, starts_of(w))
    return TrainedGrid(scale, grid, axis, groups)


def starting_quantizer(
    histogram: Histogram, grid: Grid, method: Way, start: Start
) -> TrainedQuantizer:
    """The quantiser with which a site's training begins."""
    clipped = method == "pact" and histogram.low >= 0 and not grid.signed
    if method == "straight-through" or (method == "pact" and not clipped):
        return MovingRange(torch.tensor(histogram.low), torch.tensor(histogram.high), grid)
    low, high = (torch.tensor(end) for end in choose_range(histogram, "mse", grid))
    if clipped:
        return LearnedClip(high.clamp(min=1e-6), grid)
    if method == "learned-range" and not grid.symmetric:
        return LearnedRange(low.clamp(max=0), high.clamp(min=1e-6), grid)
    scale, zero_point = grid_for_range(low, high, grid)
    if start == "mean" and histogram.low >= 0:
        x, counts = centres_of(histogram)
        scale = initial_step((x.abs() @ counts) / counts.sum(), grid.high).float()
    return LearnedStep(scale, zero_point, grid)


def round_biases(model: nn.Module, layout: Layout) -> None:
    """Lets biases be rounded where a kernel adds them to one integer product."""
    runs = Counter(path for path, _ in layout.placement.feeds)
    by_site, norms = sites_of(model), dict(layout.pairs)
    held = {layer.name: layer for shared in layout.layers for layer in shared}
    for path, site in layout.placement.feeds:
        quantizer = by_site.get(layout.training_site(site))
        if quantizer is None or runs[path] > 1 or grid_of(held[path]) is None:
            continue
        form = RoundedBias(held[path], quantizer)
        norm = model.get_submodule(norms[path]) if path in norms else None
        if isinstance(norm, NormBehindGain):
            norm.correction = form.correction
        elif getattr(held[path].module, "bias", None) is not None:
            dress(held[path].module, "bias", form)


def sites_of(model: nn.Module) -> dict[str, Any]:
    """The quantisers of activations by the names of their sites."""
    held = quantizers_of(model)
    return held.at_site() if held is not None else {}


def grids_in_training(model: nn.Module) -> list[TrainedWeight]:
    """The grids on weights."""
    return [m for m in model.modules() if isinstance(m, TrainedWeight)]


def quantizers_in_training(model: nn.Module) -> list[TrainedQuantizer]:
    """The quantisers of activations."""
    return [m for m in model.modules() if isinstance(m, TrainedQuantizer)]


@torch.no_grad()
def finish_training(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """Stores codes, scales, biases and plain quantisers in the place of what was trained.

    The network computes what it computed in eval mode, up to float rounding.

    Returns:
        What a step remembers: folded norms, ranges, integer calls.
    """
    model.eval()
    by_site = sites_of(model)
    trained: dict[str, tuple[Grid, Affine]] = {}
    for site in (site for group in layout.placement.groups for site in group):
        quantizer = by_site.get(layout.training_site(site))
        if quantizer is not None:
            trained[site] = quantizer.grid, quantizer.affine()
    scales: dict[str, float] = {}
    for path, site in layout.placement.feeds:
        if site in trained:
            scale = float(trained[site][1][0])
            scales[path] = min(scales.get(path, scale), scale)
    detach_quantizers(model)
    for layer in (layer for shared in layout.layers for layer in shared):
        if find(layer.module, RoundedBias, "bias") is not None:
            bake_one(layer.module, "bias")
    grids = [(shared, below_grid(shared[0]), grid_of(shared[0])) for shared in layout.layers]
    finish_folding(model, layout.pairs)
    for shared, w, form in grids:
        if form is not None:
            store_codes(shared, w, form, scales)
    bake(model)
    if layout.runtime.bias == "int32":
        quantise_biases(model, layout.placement, scales)
    if trained:
        plain: list[nn.Module] = [
            ActivationQuantizer(scale.clone(), zero_point.clone(), grid)
            for grid, (scale, zero_point) in trained.values()
        ]
        ActivationQuantizers(list(trained), plain, layout.placement.unrounded).attach(model)
    return report(layout, {site: ends_of_grid(*found) for site, found in trained.items()})


def store_codes(
    shared: list[Layer], w: Tensor, form: TrainedWeight, scales: Mapping[str, float]
) -> None:
    """Stores a weight as codes wherever it is held.

    Args:
        shared: the layers that hold it.
        w: as it goes into its grid.
        form: the grid.
        scales: of what is fed to layers, by path; biases must fit into 32-bit steps of both scales.
    """
    scale, zero_point = form.affine(w)
    for layer in shared:
        bias = getattr(layer.module, "bias", None)
        if layer.name in scales and isinstance(bias, Tensor) and bias.shape == scale.shape:
            scale = torch.maximum(scale, bias.detach().abs() / (scales[layer.name] * INT32))
    rows = rows_of(w, form.axis, form.within) if form.within is not None else None
    codes = weight_codes(w, scale, form.grid, form.axis, rows) * 2**form.shift
    stored = Quantised(scale * 2.0**-form.shift, zero_point.clone(), form.axis, form.grid.bits)
    clothe(shared, codes, stored)


def ends_of_grid(grid: Grid, affine: Affine) -> tuple[float, float]:
    """The lowest and the highest value of a grid."""
    scale, zero = float(affine[0]), int(affine[1])
    return scale * (grid.low - zero), scale * (grid.high - zero)
