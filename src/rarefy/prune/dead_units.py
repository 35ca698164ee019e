# SPDX-License-Identifier: Apache-2.0
"""Takes out the weights that a pruned network keeps for nothing.

A unit without living inputs gives a constant; a unit that nobody with a living weight listens to gives
nothing. Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015,
arXiv 1506.02626, section 3.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.forms.mask import mask_of, set_mask
from rarefy.loops.matrix import input_entries, kind_of, living_inputs, unit_entries
from rarefy.loops.modes import copy_state, evaluating, put_state
from rarefy.prune.nan_flow import (
    by_unit,
    constants,
    plain_copy,
    product,
    unheard_units,
    unit_axis,
)
from rarefy.select import Layer, sharing
from rarefy.task import Inputs, call, tensors_of


@dataclass(frozen=True)
class Removed:
    """How many units were taken out.

    Attributes:
        constant: inputs of layers that never vary; what they added is in the biases now.
        unheard: units whose output reaches nobody.
    """

    constant: int = 0
    unheard: int = 0


@torch.no_grad()
def remove_dead_units(
    model: nn.Module, layers: Sequence[Layer], inputs: Sequence[Inputs]
) -> Removed:
    """Masks the weights that read constants or feed unheard units; the network answers as before.

    A constant that is not zero moves into the bias of the layer that reads it, where it can: there is a
    bias, and no padding makes the sum vary over positions. Sums are then rounded differently; otherwise
    the answers stay equal bit for bit. Biases of unheard units become zero.

    Args:
        model: changed in place.
        layers: that may be changed; what is no linear layer or convolution, or shares its weight, is let
            alone.
        inputs: a few batches on the model's device, on which the answers are compared; if they differ
            after all (a comparison may swallow a NaN), everything is put back.
    """
    able = [x for x in layers if kind_of(x.module) and len(sharing(model, x)) == 1]
    for layer in able:
        set_mask(layer.module, mask_of(layer.module))
    state, constant, unheard = copy_state(model), 0, 0
    with evaluating(model):
        answers = [call(model, x) for x in inputs]
        while True:
            plain = plain_copy(model, able)
            folded = sum(fold(x, plain, c) for x, c in constants(plain, able, inputs[0]).items())
            plain = plain_copy(model, able) if folded else plain
            silenced = sum(silence(x, u) for x, u in unheard_units(plain, able, inputs[0]).items())
            constant, unheard = constant + folded, unheard + silenced
            if not folded and not silenced:
                break
        if all(alike(a, call(model, x)) for a, x in zip(answers, inputs, strict=True)):
            return Removed(constant, unheard)
    put_state(model, state)
    return Removed()


def alike(expected: Any, found: Any) -> bool:
    """Whether two answers are equal up to rounding."""
    pairs = zip(tensors_of(expected), tensors_of(found), strict=True)
    return all(torch.allclose(a, b, 1e-4, 1e-5 * float(a.abs().max())) for a, b in pairs)


def fold(layer: Layer, plain: nn.Module, x: Tensor) -> int:
    """Masks the weights that read constants, which the bias takes over; how many inputs it took."""
    module = layer.module
    w = layer.weight.detach()
    values = by_unit(module, x)  # (in, positions)
    columns = (values == values[:, :1]).all(1) & living_inputs(module, w)  # NaN equals nothing
    constant = torch.where(columns.unsqueeze(1), values, torch.zeros_like(values))
    if bool(constant.any()):
        axis = unit_axis(module, x)
        spread = constant.view(x.movedim(axis, 0).shape).movedim(0, axis)
        added = by_unit(module, product(plain.get_submodule(layer.name), w, spread))
        bias = module._parameters.get("bias")
        if bias is not None and bool((added == added[:, :1]).all()):
            bias.add_(added[:, 0])
        else:
            columns &= (values == 0).all(1)
    set_mask(module, mask_of(module) & ~input_entries(module, columns))
    return int(columns.sum())


def silence(layer: Layer, units: Tensor) -> int:
    """Masks all weights into the units and clears their biases; how many it took."""
    set_mask(layer.module, mask_of(layer.module) & ~unit_entries(layer.module, units))
    if (bias := layer.module._parameters.get("bias")) is not None:
        bias.masked_fill_(units, 0.0)
    return int(units.sum())
