# SPDX-License-Identifier: Apache-2.0
"""Outliers of activations move into the weights that read them, so that both fit into 8 bits.

Xiao, Lin, Seznec, Wu, Demouth, Han: SmoothQuant, 2022, arXiv 2211.10438, equations 3 and 4. The factors are
taken up by the layer norm, or the layer, that makes the activations; the network computes the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.graph.calls import Call
from rarefy.graph.fold import raw_weight
from rarefy.loops.gather import Side, gather
from rarefy.loops.statistics import Range
from rarefy.measure.quality import batches_of
from rarefy.quantize.calibration import look
from rarefy.quantize.chains import pairs_of_layers
from rarefy.quantize.equalise import divide_outputs, multiply_inputs
from rarefy.quantize.flow import Value, flow_of
from rarefy.quantize.kernels import ONNXRUNTIME_CPU, kind
from rarefy.quantize.tied import holders
from rarefy.select import candidates, select
from rarefy.step import Context, Count, Fraction, Patterns, Step
from rarefy.task import Inputs, move

NORMS = (nn.LayerNorm, nn.RMSNorm)


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


@dataclass(frozen=True)
class Source:
    """What makes activations that nothing but linear layers reads.

    Attributes:
        maker: path of the norm or layer.
        readers: paths of the linear layers.
    """

    maker: str
    readers: tuple[str, ...]


def sources_of(model: nn.Module, example: Inputs) -> list[Source]:
    """Norms whose every reader is a linear layer, and pairs of linear layers with a ReLU at most between.

    Args:
        model: in eval mode.
        example: a batch on its device.
    """
    modules = dict(model.named_modules())
    alone = {shared[0].name for shared in holders(model, candidates(model)) if len(shared) == 1}
    flow = flow_of(*look(model, example), ONNXRUNTIME_CPU)
    calls = [v.maker.module for v in flow.values if v.maker is not None and is_norm(v.maker)]
    found = []
    for value in flow.values:
        maker = value.maker
        if maker is None or not is_norm(maker) or calls.count(maker.module) > 1:
            continue
        norm = modules[maker.module]
        if isinstance(norm, NORMS) and norm.weight is not None and reads_plainly(value, modules):
            paths = tuple(dict.fromkeys(reader.module for reader in value.readers))
            if set(paths) <= alone:
                found.append(Source(maker.module, paths))
    for pair in pairs_of_layers(model, example):
        if all(isinstance(modules[p], nn.Linear) for p in (pair.first, pair.second)):
            found.append(Source(pair.first, (pair.second,)))
    return found


def is_norm(item: Call) -> bool:
    """Whether a call is that of a layer norm."""
    return item.function in ("layer_norm", "rms_norm")


def reads_plainly(value: Value, modules: Mapping[str, nn.Module]) -> bool:
    """Whether nothing but linear layers reads a value."""
    if value.leaves or not value.readers:
        return False
    return all(
        kind(reader) == "linear" and isinstance(modules[reader.module], nn.Linear)
        for reader in value.readers
    )


@torch.no_grad()
def smooth(model: nn.Module, source: Source, reach: Tensor, alpha: float) -> Tensor:
    """Moves the factors of one source; returns them.

    Args:
        model: changed in place.
        source: maker and readers.
        reach: (channels,) largest absolute activation of each channel.
        alpha: see `smoothing_factors`.
    """
    readers: list[Any] = [model.get_submodule(path) for path in source.readers]
    weights = torch.stack([raw_weight(reader).abs().amax(0) for reader in readers]).amax(0)
    s = smoothing_factors(reach.to(weights), weights, alpha)
    maker: Any = model.get_submodule(source.maker)
    if is_a_norm(model, source.maker):
        maker.weight.div_(s)
        if getattr(maker, "bias", None) is not None:
            maker.bias.div_(s)
    else:
        divide_outputs(maker, s)
    for reader in readers:
        multiply_inputs(reader, s)
    return s


@dataclass(frozen=True)
class SmoothQuant(Step):
    """Evens out activations in front of linear layers; float before and after, for `static-int8` to follow.

    Attributes:
        alpha: share of the difficulty that moves from activations into weights; 0.5 as a rule, more where
            activations have strong outliers.
        examples: of calibration, at most.
        layers: only linear layers among these are served, see `rarefy.select.select`.
        exclude: layers to leave out.
    """

    alpha: Fraction = 0.5
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
        sources = [s for s in sources_of(model.eval(), example) if set(s.readers) <= names]
        allowed = [s for s in sources if s.maker in names or is_a_norm(model, s.maker)]
        notes = context.record.setdefault("notes", [])
        if not allowed:
            notes.append(
                "smooth-quant: no layer norm is read by linear layers alone, so nothing can take factors up"
            )
        reaches = largest(model, allowed, context, self.examples)
        context.record["smoothed"] = {
            source.maker: float(smooth(model, source, reaches[source.maker], self.alpha).max())
            for source in allowed
        }
        return model


def is_a_norm(model: nn.Module, path: str) -> bool:
    """Whether a module is a layer norm."""
    return isinstance(model.get_submodule(path), NORMS)


def largest(
    model: nn.Module, sources: Iterable[Source], context: Context, examples: int
) -> dict[str, Tensor]:
    """The largest absolute activation of each channel behind each source, over the calibration data.

    Raises:
        ModelError: an activation is not finite.
    """
    listed = list(sources)
    wanted: dict[tuple[str, Side], Range] = {(s.readers[0], "input"): Range(-1) for s in listed}
    if not wanted:
        return {}
    gather(model, batches_of(context.task, "calibration", examples), wanted)
    found = {}
    for source in listed:
        seen = wanted[source.readers[0], "input"]
        found[source.maker] = reach = torch.maximum(seen.high, -seen.low)
        if not bool(torch.isfinite(reach).all()):
            raise ModelError(
                f"what '{source.readers[0]}' reads is NaN or infinite on calibration data"
            )
    return found
