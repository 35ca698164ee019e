# SPDX-License-Identifier: Apache-2.0
"""Where factors between activations and the linear layers that read them can be put."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from rarefy.graph.calls import Call
from rarefy.quantize.calibration import look
from rarefy.quantize.chains import pairs_of_layers
from rarefy.quantize.flow import Flow, Value, flow_of
from rarefy.quantize.kernels import ONNXRUNTIME_CPU, kind
from rarefy.quantize.tied import holders
from rarefy.select import candidates
from rarefy.task import Inputs

NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Source:
    """What makes activations that linear layers read.

    Attributes:
        maker: path of the norm or layer that takes factors up; None if a multiplication has to.
        readers: paths of the linear layers.
    """

    maker: str | None
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the maker, or of the first reader."""
        return self.readers[0] if self.maker is None else self.maker


def sources_of(model: nn.Module, example: Inputs) -> list[Source]:
    """Norms whose every reader is a linear layer, pairs of linear layers with a ReLU at most between, and
    whatever else linear layers read.

    Args:
        model: in eval mode.
        example: a batch on its device.
    """
    modules = dict(model.named_modules())
    alone = {shared[0].name for shared in holders(model, candidates(model)) if len(shared) == 1}
    flow = flow_of(*look(model, example), ONNXRUNTIME_CPU)
    found = [*norms_of(flow, modules, alone)]
    for pair in pairs_of_layers(model, example):
        if all(isinstance(modules[p], nn.Linear) for p in (pair.first, pair.second)):
            found.append(Source(pair.first, (pair.second,)))
    return [*found, *others_of(flow, modules, alone, found)]


def norms_of(flow: Flow, modules: Mapping[str, nn.Module], alone: Collection[str]) -> list[Source]:
    """Norms that run once and whose result nothing but linear layers reads."""
    runs = Counter(v.maker.module for v in flow.values if v.maker is not None and is_norm(v.maker))
    found = []
    for value in flow.values:
        maker = value.maker
        if maker is None or not is_norm(maker) or runs[maker.module] > 1:
            continue
        norm = modules[maker.module]
        if isinstance(norm, NORMS) and norm.weight is not None and reads_plainly(value, modules):
            paths = tuple(dict.fromkeys(reader.module for reader in value.readers))
            if set(paths) <= set(alone):
                found.append(Source(maker.module, paths))
    return found


def others_of(
    flow: Flow, modules: Mapping[str, nn.Module], alone: Collection[str], taken: list[Source]
) -> list[Source]:
    """Linear layers that run once and that no source serves yet, together if they read the same."""
    served = {path for source in taken for path in source.readers}
    runs = Counter(r.module for v in flow.values for r in v.readers if kind(r) == "linear")
    found = []
    for value in flow.values:
        paths = tuple(
            dict.fromkeys(
                r.module
                for r in value.readers
                if is_plain_linear(r, modules) and r.module in alone and runs[r.module] == 1
            )
        )
        left = tuple(path for path in paths if path not in served)
        if left:
            found.append(Source(None, left))
            served |= set(left)
    return found


def is_norm(item: Call) -> bool:
    """Whether a call is that of a layer norm."""
    return kind(item) in ONNXRUNTIME_CPU.normalising


def is_plain_linear(item: Call, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a call is that of a linear layer."""
    return kind(item) == "linear" and isinstance(modules[item.module], nn.Linear)


def reads_plainly(value: Value, modules: Mapping[str, nn.Module]) -> bool:
    """Whether nothing but linear layers reads a value."""
    plain = all(is_plain_linear(reader, modules) for reader in value.readers)
    return plain and bool(value.readers) and not value.leaves
