# SPDX-License-Identifier: Apache-2.0
"""Puts a form on a weight wherever the network uses it, so that tied weights stay tied."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.errors import ModelError
from rarefy.forms.shadow import Form, dress, unparametrize
from rarefy.loops.finite import all_finite
from rarefy.select import Layer, held_weights, stored_parameter


@torch.no_grad()
def finite_weight(layer: Layer) -> Tensor:
    """A layer's weight as the network uses it now, to be read, not written: it may be the very parameter.

    Raises:
        ModelError: it holds NaN or infinity.
    """
    weight = layer.weight.detach()
    if not all_finite(weight):
        raise ModelError(
            f"the weight of '{layer.name}' holds NaN or infinity; give a network with finite weights"
        )
    return weight


def holders(model: nn.Module, layers: Iterable[Layer]) -> list[list[Layer]]:
    """For every layer itself and, behind it, all others of the network that hold the very same parameter."""
    found: dict[int, list[Layer]] = {}
    for path, module, name in held_weights(model):
        found.setdefault(id(stored_parameter(module, name)), []).append(Layer(path, module, name))
    result = []
    for layer in layers:
        others = found[id(layer.stored)]
        result.append(
            [layer, *(x for x in others if (x.name, x.tensor) != (layer.name, layer.tensor))]
        )
    return result


def clothe(shared: Iterable[Layer], start: Tensor, form: Form) -> None:
    """Replaces a weight and the forms on it by one new form, in all modules that share it.

    Args:
        shared: all that hold the weight, see `holders`.
        start: what the form's `right_inverse` turns into what is stored.
        form: stands on the weight from now on.
    """
    first: Tensor | None = None
    for layer in shared:
        held = clothe_one(layer.module, layer.tensor, start, form)
        if first is None:
            first = held.original
        else:
            held.original = first


@torch.no_grad()
def clothe_one(
    module: nn.Module, name: str, start: Tensor, form: Form
) -> parametrize.ParametrizationList:
    """Replaces one tensor of a module and the forms on it by one new form; returns what holds it now."""
    unparametrize(module, name)
    setattr(module, name, nn.Parameter(start.clone(), requires_grad=start.is_floating_point()))
    dress(module, name, form)
    return module.parametrizations[name]  # type: ignore[index, return-value]
