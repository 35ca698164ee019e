# SPDX-License-Identifier: Apache-2.0
"""A network made ready for integers: norms folded, quantisers placed, ranges found, nothing rounded yet."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.activations import detach_quantizers, quantize_sites
from rarefy.forms.grid import grid_for_range
from rarefy.forms.shadow import bake
from rarefy.graph.calls import Calls
from rarefy.graph.fold import fold_batch_norms
from rarefy.quantize.calibration import look
from rarefy.quantize.damage import Rounding
from rarefy.quantize.flow import flow_of
from rarefy.quantize.int8_weights import Codes, coded_weight, quantise_bias, store_codes
from rarefy.quantize.kernels import Runtime, gives_floats, kind, passes
from rarefy.quantize.output_error import Range, Reader, readers_of
from rarefy.quantize.placement import Placement, place
from rarefy.quantize.tied import holders
from rarefy.select import Layer, candidates, matcher, matches, select
from rarefy.step import Patterns
from rarefy.task import Inputs


@dataclass(frozen=True)
class Prepared:
    """What is known of a network before it is rounded.

    Attributes:
        model: batch norms folded.
        runtime: table of its kernels.
        weights: for every weight to be rounded the layers that hold it.
        calls, floating: of one run, see `rarefy.quantize.calibration.look`.
        placement: where quantisers go.
        folded: pairs of layer and norm.
    """

    model: nn.Module
    runtime: Runtime
    weights: list[list[Layer]]
    calls: Calls
    floating: set[str]
    placement: Placement
    folded: list[tuple[str, str]]

    def readers(self) -> dict[str, Reader]:
        """The integer calls that multiply, by site."""
        return readers_of(self.calls, self.floating, self.placement, self.runtime)

    def scales(self, ranges: dict[str, Range]) -> dict[str, float]:
        """The scale of what is fed to every integer layer; the least, if it runs more than once."""
        found: dict[str, float] = {}
        for path, site in self.placement.feeds:
            low, high = (torch.tensor(end, dtype=torch.float64) for end in ranges[site])
            scale = float(grid_for_range(low, high, self.runtime.activations)[0])
            found[path] = min(found.get(path, scale), scale)
        return found

    def codes(self, ranges: dict[str, Range], **how: object) -> dict[str, Codes]:
        """Every weight as integers, by the first layer that holds it; for `how` see `coded_weight`."""
        scales, half = self.scales(ranges), self.runtime.scale_bits == 16
        return {
            shared[0].name: coded_weight(shared, scales, half=half, **how)  # type: ignore[arg-type]
            for shared in self.weights
        }

    def rounding(self, ranges: dict[str, Range], codes: Mapping[str, Codes]) -> Rounding:
        """How all integer calls will be rounded."""
        first = {layer.name: shared[0].name for shared in self.weights for layer in shared}

        def weight(path: str) -> Tensor | None:
            return codes[first[path]].dequantised() if path in first else None

        return Rounding(self.readers(), ranges, self.runtime.activations, weight, set(first))

    def finish(self, ranges: dict[str, Range], codes: Mapping[str, Codes]) -> nn.Module:
        """Stores weights and biases as integers and attaches the quantisers of activations."""
        for shared in self.weights:
            store_codes(shared, codes[shared[0].name])
        if self.runtime.bias == "int32":
            quantise_biases(self.model, self.placement, self.scales(ranges))
        grid, raw = self.runtime.activations, self.placement.unrounded
        quantize_sites(self.model, ranges, lambda _: grid, raw)
        return self.model

    def bound(self, site: str) -> list[str]:
        """The layer of an integer call, and those before it whose kernels would round what it reads."""
        flow = flow_of(self.calls, self.floating, self.runtime)
        layers, pending = [site.rpartition(":")[0]], list(flow.read[site])
        while pending:
            value = pending.pop()
            maker = value.maker if value is not None else None
            if maker is None:
                continue
            if passes(maker, self.runtime):
                pending += flow.read[maker.site]
                continue
            integer = maker.site in self.placement.integer and kind(maker) in self.runtime.weighted
            if integer and not gives_floats(maker, False, self.runtime):
                layers.append(maker.module)
        return list(dict.fromkeys(layers))


@torch.no_grad()
def prepare(
    model: nn.Module,
    example: Inputs,
    runtime: Runtime,
    layers: Patterns = "*",
    exclude: Patterns = (),
) -> Prepared:
    """Folds batch norms and decides where quantisers go.

    Args:
        model: changed in place.
        example: a batch on its device.
        runtime: table of its kernels.
        layers: of which the weights are rounded.
        exclude: layers that stay float, and modules whose own calls do.

    Raises:
        ModelError: not one call could be computed in integers.
    """
    detach_quantizers(bake(model.eval()))
    folded = fold_batch_norms(model, example)
    weights = holders(model, select(model, layers, exclude=of_layers(model, exclude)))
    names = {layer.name for shared in weights for layer in shared}
    calls, floating = look(model, example)
    found = placement_of(model, calls, floating, names, runtime, exclude)
    return Prepared(model, runtime, weights, calls, floating, found, folded)


def placement_of(
    model: nn.Module,
    calls: Calls,
    floating: Collection[str],
    quantised: Collection[str],
    runtime: Runtime,
    exclude: Patterns = (),
) -> Placement:
    """Where quantisers go; for the arguments see `rarefy.quantize.placement.place`.

    Raises:
        ModelError: not one call could be computed in integers.
    """
    found = place(calls, floating, quantised, excluded_modules(model, exclude), runtime)
    if not found.integer:
        shown = ", ".join(sorted(quantised)[:5])
        raise ModelError(
            f"no call of the {type(model).__name__} can be computed in integers: none of its layers "
            f"({shown}) was seen to run as a convolution or matrix product; use fixed-point, which "
            "changes weights only"
        )
    return found


def quantise_biases(model: nn.Module, placement: Placement, scales: Mapping[str, float]) -> None:
    """Biases as 32-bit integers, but for layers that read several values, each on a scale of its own.

    Args:
        model: its weights are stored as integers.
        placement: of its quantisers.
        scales: of what is fed to layers, by path.
    """
    read = Counter(path for path, _ in set(placement.feeds))
    for path, scale in scales.items():
        if read[path] == 1:
            quantise_bias(model.get_submodule(path), scale)


def of_layers(model: nn.Module, exclude: Patterns) -> tuple[str | int, ...]:
    """The patterns but those that mean modules and no layer, which `excluded_modules` finds."""
    every, patterns = candidates(model), (exclude,) if isinstance(exclude, str) else exclude
    return tuple(p for p in patterns if matches(p, every) or not excluded_modules(model, (p,)))


def excluded_modules(model: nn.Module, exclude: Patterns) -> set[str]:
    """Paths of the modules that patterns mean, layers or not."""
    patterns = (exclude,) if isinstance(exclude, str) else exclude
    fits = [matcher(p) for p in patterns if isinstance(p, str) and not p.startswith("type:")]
    return {path for path, _ in model.named_modules() if any(fit(path) for fit in fits)}


def spread(found: dict[str, Range], groups: Collection[tuple[str, ...]]) -> dict[str, Range]:
    """The range of every site from that of its group's first."""
    return {site: found[group[0]] for group in groups for site in group}
