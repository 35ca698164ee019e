# SPDX-License-Identifier: Apache-2.0
"""Parameters, non-zeros and multiply-accumulates of a network."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.export.inputs import first_examples
from rarefy.forms.shadow import forms_of
from rarefy.loops.modes import evaluating
from rarefy.task import Inputs, call, move

DISTINCT = 65_536


@dataclass(frozen=True)
class LayerCost:
    """What one module with parameters of its own costs.

    Attributes:
        name: dotted path.
        type: name of its class.
        shape: of its weight (of its first parameter, if none is called so).
        parameters: of all its own tensors, each dressed tensor by its materialised value.
        nonzero: of them.
        distinct: different values in the tensor of that shape; None beyond 65,536.
        form: how that tensor is held: ``"dense"``, ``"mask"``, ``"codebook"``, ``"quantised"``, or several
            joined by ``"+"``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    nonzero: int
    distinct: int | None
    form: str


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors that are `module`'s own, by name; a dressed one as the value that it gives."""
    if parametrize.is_parametrized(module):
        for name in module.parametrizations:  # type: ignore[union-attr]
            yield name, getattr(module, name).detach()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter.detach()


@torch.no_grad()
def logical_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(path, module, name, value) of every trained tensor of a network; shared ones once, buffers left out.

    A mask, a codebook or integer codes count as the weight that they stand for; what parametrizations hold
    inside (levels, scales, scores) is not counted beside it.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        for name, value in own_tensors(module):
            held = module._parameters.get(name)
            if held is not None and id(held) in seen:
                continue
            seen.add(id(held))
            yield path, module, name, value


def parameters(model: nn.Module) -> int:
    """How many weights the network has, zeros included."""
    return sum(value.numel() for *_, value in logical_tensors(model))


def nonzero(model: nn.Module) -> int:
    """How many weights are not zero."""
    return sum(int(torch.count_nonzero(value)) for *_, value in logical_tensors(model))


def layers(model: nn.Module) -> list[LayerCost]:
    """One row for every module with parameters of its own, in the order of definition."""
    rows: dict[str, list[tuple[nn.Module, str, Tensor]]] = {}
    for path, module, name, value in logical_tensors(model):
        rows.setdefault(path, []).append((module, name, value))
    return [layer_cost(path, own) for path, own in rows.items()]


def layer_cost(path: str, own: list[tuple[nn.Module, str, Tensor]]) -> LayerCost:
    """The row of one module."""
    module, name, weight = next((row for row in own if row[1] == "weight"), own[0])
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = parametrize.type_before_parametrizations(module)
    forms = [getattr(form, "kind", type(form).__name__) for form in forms_of(module, name)]
    return LayerCost(
        name=path,
        type=kind.__name__,
        shape=tuple(weight.shape),
        parameters=sum(value.numel() for *_, value in own),
        nonzero=sum(int(torch.count_nonzero(value)) for *_, value in own),
        distinct=distinct_values(weight),
        form="+".join(forms) or "dense",
    )


def distinct_values(tensor: Tensor, limit: int = DISTINCT) -> int | None:
    """How many different values a tensor holds; None if there are more than `limit`.

    Stops as soon as that is clear, so a large dense weight costs no full sort.
    """
    flat = tensor.detach().flatten()
    known = flat[:0]
    for part in flat.split(4 * limit):
        known = torch.cat([known, part.unique()]).unique()
        if len(known) > limit:
            return None
    return len(known)


def macs(model: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates for one example: one multiplication and one addition count as one.

    Counted are convolutions, linear layers, every kind of matrix product and attention, recurrent networks
    through the products that they consist of; biases, norms, activations and poolings are not. Zeros are
    multiplied like other values. The network runs once in eval mode on the example's first row, on whatever
    device it lies (``meta`` too: then nothing is computed).

    Args:
        model: left as it was.
        example: batch first, on any device.
    """
    one, place = first_examples(example, 1), next((p.device for p in model.parameters()), None)
    with evaluating(model), products_visible(), counter() as count:
        call(model, one if place is None else move(one, place))
    return int(count.get_total_flops()) // 2


def counter() -> Any:
    """torch's counter of operations, taught the products with a vector, which it leaves out."""
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    rules = {
        aten.mv: lambda matrix, vector, *_, **__: 2 * math.prod(matrix),
        aten.addmv: lambda bias, matrix, vector, *_, **__: 2 * math.prod(matrix),
        aten.dot: lambda a, b, *_, **__: 2 * math.prod(a),
        aten._trilinear: lambda a, weight, b, *_, **__: 2 * a[0] * math.prod(weight),
    }
    return FlopCounterMode(display=False, custom_mapping=rules)


@contextmanager
def products_visible() -> Iterator[None]:
    """Keeps torch from kernels that hide their products: oneDNN's LSTM, fused attention and encoders.

    Gradients stay on, for without them torch takes further short cuts.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mkldnn, encoder = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = mkldnn
        torch.backends.mha.set_fastpath_enabled(encoder)
