# SPDX-License-Identifier: Apache-2.0
"""8-bit weights and 8-bit activations whose ranges are found while the network runs; no data are needed.

Yao et al.: ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers, 2022,
arXiv 2206.01861, section 4.1 (a range for each token). Embeddings keep one scale for each row and are never
dequantised as a whole; an LSTM rounds what it reads and, in every step, its state.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rarefy.errors import RecipeError
from rarefy.forms.dynamic import DynamicLinear
from rarefy.forms.recurrent import Recurrent
from rarefy.forms.shadow import bake
from rarefy.loops.matrix import kind_of
from rarefy.quantize.int8_weights import coded_weight, store_codes
from rarefy.quantize.tied import holders
from rarefy.quantize.weight_layers import choose, exchange, renewed
from rarefy.select import Layer, is_embedding
from rarefy.step import Context, Patterns, Step


@dataclass(frozen=True)
class DynamicInt8(Step):
    """Linear layers, LSTMs and embeddings in 8 bits, without calibration.

    Suits transformers and recurrent networks, whose activations vary from input to input; for convolutions
    `static-int8` is faster. A GRU and a plain recurrent layer have 8-bit weights and compute in floats, since
    no runtime has integer kernels for them; so does an LSTM in OpenVINO.

    Attributes:
        granularity: of the ranges of what linear layers read: ``"token"``, one for each row, or ``"tensor"``,
            one for all, which is a little faster and much coarser.
        overflow: ``"avoid"`` keeps pairs of codes within the 16-bit sums of x86 processors without VNNI;
            ``"allow"`` is for machines known to have VNNI.
        layers: which layers; patterns as in `rarefy.select.select` that also mean embeddings and recurrent
            layers. Convolutions among them stay float.
        exclude: layers to leave out.
    """

    granularity: Literal["token", "tensor"] = "token"
    overflow: Literal["avoid", "allow"] = "avoid"
    layers: Patterns = "*"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Exchanges linear and recurrent layers for ones that round, and stores codes."""
        chosen = choose(bake(model.eval()), self.layers, self.exclude)
        sharing = [layer for shared in holders(model, chosen.layers) for layer in shared]
        linear = [layer for layer in sharing if is_linear(layer)]
        tables = [layer for layer in chosen.layers if is_embedding(layer.module)]
        if not linear and not tables and not chosen.recurrent:
            refuse_convolutions(model, context)
        loops = self.rounding(model, linear, chosen.recurrent, context)
        # biases stay float: their steps may be as coarse as they like
        scales = {layer.name: math.inf for layer in (*linear, *loops)}
        for shared in holders(model, renewed([*linear, *tables, *loops], model)):
            store_codes(shared, coded_weight(shared, scales, overflow=self.overflow))
        return model

    def rounding(
        self, model: nn.Module, linear: list[Layer], recurrent: list[Layer], context: Context
    ) -> list[Layer]:
        """Exchanges layers for ones that round what they read; returns the weights of recurrent ones."""
        left = []
        for layer in linear:
            module = layer.module
            if isinstance(module, NonDynamicallyQuantizableLinear):
                left.append(layer.name)
                continue
            token, turned = self.granularity == "token", kind_of(module) == "turned"
            exchange(model, module, DynamicLinear(module, token, turned))
        loops = []
        for layer in recurrent:
            new = Recurrent(cast(nn.RNNBase, layer.module), context.runtime == "onnxruntime")
            if not new.dynamic:
                left.append(layer.name)
            exchange(model, layer.module, new)
            loops += [Layer(layer.name, new, name) for name in new.weights()]
        show_calls(model)
        if left:
            context.record.setdefault("notes", []).append(
                f"dynamic-int8 stores the weights of {listed(left)} in 8 bits, but they compute in floats: "
                f"{context.runtime} has no integer kernel that could take their place"
            )
        return loops


def refuse_convolutions(model: nn.Module, context: Context) -> None:
    """Notes that nothing was selected that could be rounded.

    Raises:
        RecipeError: the network holds nothing of the kind.
    """
    every = choose(model)
    if not every.recurrent and not any(
        is_linear(layer) or is_embedding(layer.module) for layer in every.layers
    ):
        raise RecipeError(
            f"dynamic-int8 finds no linear layer, embedding or recurrent layer in the "
            f"{type(model).__name__}; use static-int8 for convolutions"
        )
    context.record.setdefault("notes", []).append(
        "dynamic-int8 was given convolutions alone, which stay float; static-int8 rounds them"
    )


def is_linear(layer: Layer) -> bool:
    """Whether a layer multiplies by a matrix."""
    return layer.tensor == "weight" and kind_of(layer.module) in ("linear", "turned")


def show_calls(model: nn.Module) -> None:
    """Keeps torch's transformer layers from calling one fused kernel, which would pass over new layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def listed(names: list[str]) -> str:
    """The first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
