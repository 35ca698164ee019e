# SPDX-License-Identifier: Apache-2.0
"""Outliers of activations move into the weights that read them, so that both fit into 8 bits.

Xiao, Lin, Seznec, Wu, Demouth, Han: SmoothQuant, 2022, arXiv 2211.10438, equations 3 and 4. The factors are
taken up by the layer norm, or the layer, that makes the activations; the network computes the same. Where
something else reads them too, as behind the norms of BERT, a multiplication is put in front of the linear
layers. Departure: a place is left as it is unless the rounding errors that its ranges let expect
fall by a quarter.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.channel_scale import scaled
from rarefy.graph.fold import raw_weight
from rarefy.loops.gather import Side, gather
from rarefy.loops.statistics import ChannelMoments, Range
from rarefy.measure.quality import batches_of
from rarefy.quantize.equalise import divide_outputs, multiply_inputs
from rarefy.quantize.smooth_sources import NORMS, Source, sources_of
from rarefy.quantize.weight_layers import exchange
from rarefy.select import select
from rarefy.step import Context, Count, Fraction, Patterns, Step
from rarefy.task import move

STEPS, LARGEST = 255, 127
"""Steps between the ends of an activation's range, and of a weight's from zero to its largest."""

WORTH = 0.75
"""Share of the expected squared error that must not be left over for a place to be changed."""


class Reach:
    """Ranges and mean squares of channels, (channels,) each, of tensors (..., channels)."""

    def __init__(self) -> None:
        self.range, self.moments = Range(-1), ChannelMoments(-1)

    def update(self, x: Tensor) -> None:
        """Takes a tensor in."""
        self.range.update(x)
        self.moments.update(x)

    def largest(self) -> Tensor:
        """max|X| of each channel."""
        return torch.maximum(self.range.high, -self.range.low)

    def square(self) -> Tensor:
        """Mean of X² of each channel."""
        return (self.moments.mean.square() + self.moments.variance()).float()


def smoothing_factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s = max|X|^alpha / max|W|^(1 - alpha), (channels,); 1 where either is empty.

    Args:
        activations: (channels,) max|X| of each channel.
        weights: (channels,) max|W| over all weights that read it.
        alpha: share of the difficulty that moves into the weights.
    """
    usable = (activations > 0) & (weights > 0)
    s = activations.pow(alpha) / weights.pow(1 - alpha)
    return torch.where(usable & torch.isfinite(s) & (s > 0), s, torch.ones_like(s))


def expected_error(reach: Reach, weight: Tensor, s: Tensor) -> float:
    """Squared error that 8-bit rounding adds to the outputs of a layer for one example.

    Rounding to steps of d adds d² / 12 to a value, independent of all others: activations are rounded in one
    step, weights in one step for each row.

    Args:
        reach: of the activations, (channels,).
        weight: (outputs, channels).
        s: (channels,) factors from activations to weights.
    """
    low, high = (reach.range.low / s).min().clamp(max=0), (reach.range.high / s).max().clamp(min=0)
    moved = weight * s
    rows = moved.abs().amax(1) / LARGEST
    of_activations = ((high - low) / STEPS).square() * moved.square().sum()
    of_weights = rows.square().sum() * (reach.square() / s.square()).sum()
    return float((of_activations + of_weights) / 12)


@torch.no_grad()
def smooth(model: nn.Module, source: Source, reach: Reach, alpha: float) -> Tensor | None:
    """Moves the factors of one source, or leaves it alone; returns the factors.

    Args:
        model: changed in place.
        source: maker and readers.
        reach: of the activations.
        alpha: see `smoothing_factors`.
    """
    readers: list[Any] = [model.get_submodule(path) for path in source.readers]
    weight = torch.cat([raw_weight(reader) for reader in readers])
    s = smoothing_factors(reach.largest().to(weight), weight.abs().amax(0), alpha)
    before, after = (expected_error(reach, weight, each) for each in (torch.ones_like(s), s))
    if not after <= WORTH * before:
        return None
    for reader in readers:
        multiply_inputs(reader, s)
    if source.maker is None:
        for reader in readers:
            exchange(model, reader, scaled(reader, 1 / s))
        return s
    maker: Any = model.get_submodule(source.maker)
    if is_a_norm(model, source.maker):
        maker.weight.div_(s)
        if getattr(maker, "bias", None) is not None:
            maker.bias.div_(s)
    else:
        divide_outputs(maker, s)
    return s


@dataclass(frozen=True)
class SmoothQuant(Step):
    """Evens out activations in front of linear layers; float before and after, for `static-int8` or
    `dynamic-int8` to follow.

    Attributes:
        alpha: share of the difficulty that moves from activations into weights. The paper has 0.5 to 0.8.
        multiply: whether activations that no norm or layer can take factors up for, because something else
            reads them too, are multiplied in front of the linear layers.
        examples: of calibration, at most.
        layers: only linear layers among these are served, see `rarefy.select.select`; one that is multiplied
            for is called ``<name>.layer`` from then on.
        exclude: layers to leave out.
    """

    alpha: Fraction = 0.75
    multiply: bool = True
    examples: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Scales in place."""
        example = move(context.task.example, context.device)
        names = {layer.name for layer in select(model, self.layers, exclude=self.exclude)}
        allowed = [s for s in sources_of(model.eval(), example) if self.serves(model, s, names)]
        notes = context.record.setdefault("notes", [])
        reaches = reaches_of(model, allowed, context, self.examples)
        found = {s.name: smooth(model, s, reaches[s], self.alpha) for s in allowed}
        context.record["smoothed"] = {
            name: float(s.max()) for name, s in found.items() if s is not None
        }
        if not context.record["smoothed"]:
            notes.append("smooth-quant: nothing to gain, or nothing that can take factors up")
        return model

    def serves(self, model: nn.Module, source: Source, names: set[str]) -> bool:
        """Whether a source may be served."""
        if not set(source.readers) <= names:
            return False
        if source.maker is None:
            return self.multiply
        return source.maker in names or is_a_norm(model, source.maker)


def is_a_norm(model: nn.Module, path: str) -> bool:
    """Whether a module is a layer norm."""
    return isinstance(model.get_submodule(path), NORMS)


def reaches_of(
    model: nn.Module, sources: Iterable[Source], context: Context, examples: int
) -> dict[Source, Reach]:
    """What flows out of each source, over the calibration data.

    Raises:
        ModelError: an activation is not finite.
    """
    found = {source: Reach() for source in sources}
    wanted: dict[tuple[str, Side], Reach] = {(s.readers[0], "input"): r for s, r in found.items()}
    if wanted:
        gather(model, batches_of(context.task, "calibration", examples), wanted)
    for source, reach in found.items():
        if not bool(torch.isfinite(reach.largest()).all()):
            raise ModelError(
                f"what '{source.readers[0]}' reads is NaN or infinite on calibration data"
            )
    return found
