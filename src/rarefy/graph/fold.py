# SPDX-License-Identifier: Apache-2.0
"""Folding batch norms into the layers before them, so that one operator remains of two.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3.2. Which norm follows which layer is seen by running the network once.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.forms.mask import Mask
from rarefy.forms.shadow import forms_of
from rarefy.graph.calls import Calls, record_calls
from rarefy.task import Inputs

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (
    nn.Linear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def foldable(model: nn.Module, calls: Calls) -> list[tuple[str, str]]:
    """Pairs (layer, norm) of paths where the norm is the only reader of the layer's output.

    A module that runs more than once is left alone: its two runs may be normalised differently.
    """
    modules = dict(model.named_modules())
    runs = Counter(item.module for item in calls.calls if item.function in ("batch_norm", "linear")
                   or item.function.startswith("conv"))  # fmt: skip
    producers, consumers = calls.producers(), calls.consumers()
    pairs = []
    for item in calls.calls:
        norm = modules.get(item.module)
        if (
            item.function != "batch_norm"
            or not isinstance(norm, NORMS)
            or not norm.track_running_stats
        ):
            continue
        before = producers.get(item.inputs[0])
        if before is None or len(consumers[item.inputs[0]]) > 1 or item.inputs[0] in calls.outputs:
            continue
        layer = modules.get(before.module)
        plain = isinstance(layer, LAYERS) and all(isinstance(f, Mask) for f in forms_of(layer))
        if plain and runs[item.module] == 1 and runs[before.module] == 1:
            pairs.append((before.module, item.module))
    return pairs


def output_axis(layer: nn.Module) -> int:
    """The axis of a layer's weight that counts its output channels."""
    return (
        1 if type(layer).__name__.startswith(("ConvTranspose", "ParametrizedConvTranspose")) else 0
    )


def raw_weight(layer: nn.Module) -> Tensor:
    """The trained tensor behind a weight: itself, or the original under its masks."""
    if forms_of(layer):
        return layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    return layer.weight  # type: ignore[return-value]


@torch.no_grad()
def fold_pair(layer: Any, norm: Any) -> None:
    """Multiplies the layer's weight by gamma / sqrt(variance + eps) and moves the shift into its bias."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = 1 / torch.sqrt(variance + norm.eps)
    shift = torch.zeros_like(gain)
    if norm.weight is not None:
        gain, shift = gain * norm.weight.double(), norm.bias.double()
    weight = raw_weight(layer)
    axis = output_axis(layer)
    if axis == 1 and layer.groups > 1:
        # (inputs, outputs / groups, ...): outputs run through the groups of inputs
        G = layer.groups
        parts = weight.double().unflatten(0, (G, -1))
        scaled = (parts * gain.view(G, 1, -1, *[1] * (weight.dim() - 2))).flatten(0, 1)
    else:
        scaled = weight.double() * gain.view([-1 if i == axis else 1 for i in range(weight.dim())])
    weight.copy_(scaled)
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(mean)
    folded = ((bias - mean) * gain + shift).to(weight.dtype)
    layer.bias = nn.Parameter(folded)


def fold_batch_norms(model: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    """Folds every batch norm that follows a layer directly; it is replaced by `nn.Identity`.

    Args:
        model: changed in place; its outputs in eval mode stay the same up to rounding.
        example: a batch on the model's device.

    Returns:
        The pairs (layer, norm) that were folded.
    """
    pairs = foldable(model, record_calls(model, example))
    for layer_path, norm_path in pairs:
        fold_pair(model.get_submodule(layer_path), model.get_submodule(norm_path))
        parent, _, name = norm_path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    return pairs
