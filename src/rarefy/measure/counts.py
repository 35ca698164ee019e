# SPDX-License-Identifier: Apache-2.0
"""What a network costs on paper: weights, zeros, multiply-accumulates, layer by layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from rarefy.forms.shadow import Form, forms_of
from rarefy.task import Inputs, call, first_example, move


@dataclass(frozen=True)
class LayerCost:
    """What one layer holds.

    Attributes:
        name: dotted path.
        type: class of the module, as before any parametrization.
        shape: of its weight.
        parameters: entries of all its own tensors, biases included.
        nonzero: of these, how many are not zero.
        distinct: different values of the weight, zero included.
        form: ``"dense"``, ``"sparse"`` (half or more of it is zero), ``"codebook"`` (fewer values than
            an eighth of its entries, 256 at most) or ``"quantised"``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    nonzero: int
    distinct: int
    form: str


def tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every logical weight of a network once: (path of its module, module, name, values).

    A tensor that wears forms counts by the values that it gives; buffers and the forms' own tensors do
    not count, and a tensor shared by several modules counts where it is met first.
    """
    seen: set[int] = set()
    inner = {
        id(part)
        for module in model.modules()
        if isinstance(module, (Form, parametrize.ParametrizationList))
        for part in module.modules()
    }
    for path, module in model.named_modules():
        if id(module) in inner:
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield path, module, name, parameter.detach()
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:  # type: ignore[union-attr]
                with torch.no_grad():
                    yield path, module, name, getattr(module, name)


def attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Twice the products of attention: (B, heads, S, E) with (B, heads, L, E) and (B, heads, L, V)."""
    B, H, S, E = query
    return 2 * B * H * S * key[2] * (E + value[3])


def recurrent_flops(
    inputs: tuple[int, ...],
    input_weight: tuple[int, ...],
    state_weight: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    """Twice the products of one recurrent layer over (T, B, features) inputs."""
    return 2 * inputs[0] * inputs[1] * (math.prod(input_weight) + math.prod(state_weight))


# fused operators of the CPU that torch's own counter does not know
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: recurrent_flops,
}


def parameters(model: nn.Module) -> int:
    """How many weights a network has; a quantised or shared weight counts by its entries."""
    return sum(values.numel() for *_, values in tensors(model))


def nonzero(model: nn.Module) -> int:
    """How many of its weights are not zero."""
    return sum(int(torch.count_nonzero(values)) for *_, values in tensors(model))


def macs(model: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates of one example: convolutions, matrix products, attention.

    Counted on what really runs for the first example of a batch, so control flow is respected. Biases,
    norms, activations and poolings are not counted, as is the custom of the literature.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was = model.training
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    try:
        # with gradients enabled no fused inference path hides its products
        with torch.enable_grad(), counter:
            call(model.eval(), move(first_example(example), device))
    finally:
        model.train(was)
    return counter.get_total_flops() // 2


def layers(model: nn.Module) -> list[LayerCost]:
    """The layers that hold a weight of two or more axes, in the order of the network."""
    held: dict[str, list[tuple[str, nn.Module, Tensor]]] = {}
    for path, module, name, values in tensors(model):
        held.setdefault(path, []).append((name, module, values))
    found = []
    for path, group in held.items():
        name, module, weight = max(group, key=lambda item: (item[2].dim() >= 2, item[2].numel()))
        if weight.dim() < 2:
            continue
        base = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        distinct = int(torch.unique(weight).numel())
        found.append(
            LayerCost(
                path,
                base.__name__,
                tuple(weight.shape),
                sum(values.numel() for *_, values in group),
                sum(int(torch.count_nonzero(values)) for *_, values in group),
                distinct,
                form_of(module, name, weight, distinct),
            )
        )
    return found


def form_of(module: nn.Module, name: str, weight: Tensor, distinct: int) -> str:
    """The word for how a weight is stored, from the forms that it wears or from its values."""
    kinds = [form.kind for form in forms_of(module, name) if isinstance(form, Form)]
    if kinds and kinds[-1] != "mask":
        return kinds[-1]
    if distinct <= min(256, weight.numel() // 8):
        return "codebook"
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    return "sparse" if 2 * zeros >= weight.numel() else "dense"
