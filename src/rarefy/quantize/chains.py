# SPDX-License-Identifier: Apache-2.0
"""Pairs of layers between which a channel may be scaled down in one and up in the other.

Between them stand only operators that let a positive factor of a channel pass: ReLU, leaky ReLU, pooling,
padding with zeros, flattening.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from rarefy.forms.mask import Mask
from rarefy.forms.shadow import forms_of
from rarefy.graph.calls import Call
from rarefy.quantize.calibration import look
from rarefy.quantize.flow import Flow, Value, flow_of
from rarefy.quantize.kernels import ONNXRUNTIME_CPU, kind
from rarefy.quantize.tied import holders
from rarefy.select import candidates
from rarefy.task import Inputs

SCALING = frozenset({
    "relu", "leaky_relu", "max_pool", "avg_pool", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "flatten", "mean", "pad",
})  # fmt: skip
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """Two layers, the second of which alone reads what the first gives.

    Attributes:
        first, second: their paths.
        between: names of the functions that are called between them.
        whole: whether every output of the second sees its whole kernel filled, so no padding is there.
    """

    first: str
    second: str
    between: tuple[str, ...]
    whole: bool


def pairs_of_layers(model: nn.Module, example: Inputs) -> list[Pair]:
    """All pairs, in the order in which their first layers run.

    Layers that run more than once, share their weight or hold it in another form than under a mask are
    left out.

    Args:
        model: in eval mode, batch norms folded.
        example: a batch on its device.
    """
    calls, floating = look(model, example)
    flow = flow_of(calls, floating, ONNXRUNTIME_CPU)
    runs = Counter(item.module for item in flow_calls(flow))
    modules = dict(model.named_modules())
    alone = {shared[0].name for shared in holders(model, candidates(model)) if len(shared) == 1}
    usable = {
        path
        for path, count in runs.items()
        if count == 1
        and path in alone
        and isinstance(modules[path], LAYERS)
        and all(isinstance(form, Mask) for form in forms_of(modules[path]))
    }
    pairs = []
    for value in flow.values:
        if value.maker is None or not is_layer(value.maker) or value.maker.module not in usable:
            continue
        found = followed(value, flow)
        if found is None:
            continue
        between, last = found
        if last.module in usable:
            first = value.maker
            whole = fills(first, last, modules[last.module]) and "pad" not in between
            pairs.append(Pair(first.module, last.module, between, whole))
    return pairs


def flow_calls(flow: Flow) -> list[Call]:
    """The calls of layers."""
    return [v.maker for v in flow.values if v.maker is not None and is_layer(v.maker)]


def is_layer(item: Call) -> bool:
    """Whether a call multiplies with a weight."""
    return kind(item) in ("conv", "linear")


def followed(value: Value, flow: Flow) -> tuple[tuple[str, ...], Call] | None:
    """The functions behind a value up to the layer that reads it, if nothing else does."""
    between: list[str] = []
    while not value.leaves and len(set(map(id, value.readers))) == 1:
        reader = value.readers[0]
        if is_layer(reader):
            active = [v for v in flow.read[reader.site] if v is not None]
            return (tuple(between), reader) if len(active) == 1 else None
        if kind(reader) not in SCALING or not keeps_channels(reader):
            return None
        made = [v for v in flow.values if v.maker is reader]
        if len(made) != 1:
            return None
        between.append(kind(reader))
        value = made[0]
    return None


def keeps_channels(item: Call) -> bool:
    """Whether a mean, a padding or a flattening leaves the channels on axis 1, in order."""
    given = [a for a in item.arguments if isinstance(a, (int, tuple, list)) and a is not True]
    if kind(item) == "mean":
        axes = given[0] if given else (0,)
        wanted = (axes,) if isinstance(axes, int) else tuple(axes)
        return bool(wanted) and all(
            isinstance(a, int) and (a >= 2 or a in (-1, -2)) for a in wanted
        )
    if kind(item) == "flatten":
        return not given or given[0] == 1
    if kind(item) == "pad":
        value = item.arguments[3] if len(item.arguments) > 3 else None
        mode = item.arguments[2] if len(item.arguments) > 2 else "constant"
        return mode == "constant" and not value
    return True


def fills(first: Call, last: Call, layer: nn.Module) -> bool:
    """Whether a convolution's kernel never reaches over the border of what the first layer gives."""
    if isinstance(layer, nn.Linear):
        return True
    sides = zip(first.shapes[0][2:], layer.kernel_size, layer.dilation, layer.stride, strict=True)  # type: ignore[arg-type]
    plain = [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in sides]
    return plain == list(last.shapes[0][2:])
