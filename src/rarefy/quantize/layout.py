# SPDX-License-Identifier: Apache-2.0
"""Which weights and activations of a network are quantised, on which integers, before anything is.

Everything is found out on a folded copy, so the network itself may keep its batch norms and masks while it
is trained or rounded.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field
from torch import nn

from rarefy.errors import RecipeError
from rarefy.forms.activations import detach_quantizers
from rarefy.forms.grid import Grid
from rarefy.forms.shadow import bake
from rarefy.graph.calls import record_calls
from rarefy.graph.fold import fold_pair, foldable
from rarefy.loops.blocks import put_module
from rarefy.loops.histogram import Histogram
from rarefy.quantize.calibration import calibrate, look
from rarefy.quantize.kernels import Runtime, table_of
from rarefy.quantize.placement import Placement
from rarefy.quantize.prepared import of_layers, placement_of
from rarefy.quantize.tied import holders
from rarefy.select import Layer, candidates, is_usual, select
from rarefy.step import Context, Patterns
from rarefy.task import Inputs, move

FLOAT = 32  # bits that mean: leave it as it is
Bits: TypeAlias = Annotated[int, Field(ge=2, le=32)]


def check_bits(key: str, **bits: int) -> None:
    """Refuses widths between those of a grid and float.

    Raises:
        RecipeError: naming step and field.
    """
    for name, value in bits.items():
        if 8 < value < FLOAT:
            raise RecipeError(
                f"{key}: {name}={value} is not allowed: write 2 to 8, or 32 to leave it float"
            )


@dataclass(frozen=True)
class Widths:
    """Bits.

    Attributes:
        weights: of weights.
        activations: of what layers with weights read; what only sums or pooling read has 8.
        ends: of the first and the last layer's weight, and of what they read.
    """

    weights: int = 8
    activations: int = 8
    ends: int = 8


@dataclass(frozen=True)
class Layout:
    """What is quantised.

    Attributes:
        pairs: paths (layer, norm) that are folded.
        layers: with quantised weight, each behind it the others that share it.
        weight_grids: by path of the first of those; float weights are missing.
        runtime: the kernels that quantisers were placed for.
        placement: of the quantisers of activations, as the folded network names their sites.
        site_grids: by the first site of each group; float ones are missing.
        histograms: of the calibration data, by the first site of each group.
    """

    pairs: list[tuple[str, str]]
    layers: list[list[Layer]]
    weight_grids: dict[str, Grid]
    runtime: Runtime
    placement: Placement
    site_grids: dict[str, Grid]
    histograms: dict[str, Histogram]

    def room(self, shared: list[Layer]) -> int:
        """By how many bits a weight's codes may be shifted up within a byte.

        A bias is added in steps of input scale times weight scale, which are coarse where both have few
        bits; shifted codes make them finer at no cost. Products stay within 16 bits.
        """
        grid = self.weight_grids.get(shared[0].name)
        first = {site: group[0] for group in self.placement.groups for site in group}
        names = {layer.name for layer in shared}
        read = [
            self.site_grids.get(first[site]) for path, site in self.placement.feeds if path in names
        ]
        if grid is None or not read or any(g is None for g in read):
            return 0
        return 8 - max(grid.bits, *(g.bits for g in read if g is not None))

    def training_site(self, site: str) -> str:
        """A site's name while the norms are still there: behind the norm."""
        module, _, _ = site.rpartition(":")
        norm = dict(self.pairs).get(module)
        return site if norm is None else f"{norm}.norm:batch_norm#0"


def lay_out(
    model: nn.Module,
    context: Context,
    widths: Widths,
    *,
    layers: Patterns = "*",
    exclude: Patterns = (),
    examples: int = 512,
) -> Layout:
    """Looks at a folded copy of the network and at the calibration data.

    Args:
        model: stays as it is, but for quantisers of activations, which are taken off.
        context: task, device and runtime.
        widths: bits.
        layers, exclude: see `rarefy.select.select`.
        examples: of calibration, at most.

    Raises:
        ModelError: no call could be computed in integers, or an activation is not finite.
        TaskError: there is no calibration data.
    """
    example = move(context.task.example, context.device)
    detach_quantizers(model.eval())
    chosen = holders(model, select(model, layers, exclude=of_layers(model, exclude)))
    names = {layer.name for shared in chosen for layer in shared}
    rounds = {widths.weights, widths.activations, widths.ends} != {FLOAT}
    pairs = pairs_of(model, example) if rounds else []
    folded = folded_copy(model, pairs)
    table = table_of(context.runtime)
    placement = placement_of(folded, *look(folded, example), names, table, exclude)
    histograms = calibrate(folded, context.task, placement.groups, examples, context.device)
    ends = ends_of(model)
    weight_grids = {
        shared[0].name: weight_grid(widths.ends if shared[0].name in ends else widths.weights)
        for shared in chosen
    }
    return Layout(
        pairs,
        chosen,
        {name: grid for name, grid in weight_grids.items() if grid is not None},
        table,
        placement,
        site_grids(placement, widths, ends, table.activations),
        histograms,
    )


def pairs_of(model: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    """Norms that can be folded into a layer whose weight nobody else holds."""
    pairs = foldable(model, record_calls(model, example))
    alone = {group[0].name for group in holders(model, candidates(model)) if len(group) == 1}
    return [(layer, norm) for layer, norm in pairs if layer in alone]


@torch.no_grad()
def folded_copy(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    """A copy with plain weights into which the norms are folded."""
    folded = bake(copy.deepcopy(model))
    for layer, norm in pairs:
        fold_pair(folded.get_submodule(layer), folded.get_submodule(norm))
        put_module(folded, norm, nn.Identity())
    return folded


def ends_of(model: nn.Module) -> set[str]:
    """Paths of the first and the last layer."""
    usual = [layer.name for layer in candidates(model) if is_usual(layer)]
    return {usual[0], usual[-1]}


def weight_grid(bits: int) -> Grid | None:
    """Symmetric integers; with 8 bits without the lowest, which runtimes are slower with."""
    return None if bits == FLOAT else Grid(bits, signed=True, symmetric=True, narrow=bits == 8)


def site_grids(placement: Placement, widths: Widths, ends: set[str], grid: Grid) -> dict[str, Grid]:
    """The integers of each group of sites: the most bits that a reader of one of them asks for.

    Args:
        placement: of the sites.
        widths: bits.
        ends: paths of the first and the last layer.
        grid: of 8 bits, as the runtime takes it.
    """
    if widths.activations == FLOAT:
        return {}
    asked: dict[str, int] = {}
    for path, site in placement.feeds:
        bits = widths.ends if path in ends else widths.activations
        asked[site] = max(asked.get(site, 0), bits)
    grids: dict[str, Grid] = {}
    for group in placement.groups:
        bits = max((asked[site] for site in group if site in asked), default=8)
        if bits != FLOAT:
            grids[group[0]] = replace(grid, bits=bits)
    return grids


def report(layout: Layout, ranges: dict[str, Any]) -> dict[str, Any]:
    """What a step remembers of it."""
    return {
        "folded_norms": len(layout.pairs),
        "ranges": ranges,
        "integer_calls": list(layout.placement.integer),
    }
