# SPDX-License-Identifier: Apache-2.0
"""Dropout for a network that is losing connections.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015,
arXiv 1506.02626, section 3.2: pruning has reduced the capacity already, so retraining drops less.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from rarefy.loops.modes import Place, evaluating, watching
from rarefy.select import Layer
from rarefy.task import Inputs, call


def adjusted_rate(rate: float, before: int, after: int) -> float:
    """D_r = D_o · sqrt(C_r / C_o), equation 2.

    Args:
        rate: D_o, the share that was dropped when the network was trained.
        before, after: C_o and C_r, connections of the layer then and now.

    Examples:
        >>> adjusted_rate(0.5, before=400, after=100)
        0.25
    """
    return rate * math.sqrt(after / before) if before else rate


def living_connections(layer: Layer) -> int:
    """How many weights of a layer are not zero."""
    return int((layer.weight.detach() != 0).sum())


def dropouts_before(
    model: nn.Module, layers: Sequence[Layer], inputs: Inputs
) -> dict[_DropoutNd, Layer]:
    """For every dropout the layer whose inputs it drops: the next one that runs."""
    by_module = {layer.module: layer for layer in layers}
    dropouts = [m for m in model.modules() if isinstance(m, _DropoutNd)]
    waiting: list[_DropoutNd] = []
    found: dict[_DropoutNd, Layer] = {}

    def seen(place: Place) -> None:
        module = place[0]
        if isinstance(module, _DropoutNd):
            waiting.append(module)
        else:
            found.update(dict.fromkeys(waiting, by_module[module]))
            waiting.clear()

    with evaluating(model), torch.no_grad(), watching([*dropouts, *by_module], before=seen):
        call(model, inputs)
    return found


def adjust_dropout(
    dropouts: Mapping[_DropoutNd, Layer],
    rates: Mapping[_DropoutNd, float],
    connections: Mapping[Layer, int],
) -> None:
    """Sets every dropout for the connections that its layer has now.

    Args:
        dropouts: see `dropouts_before`.
        rates: D_o of each.
        connections: C_o of each layer.
    """
    for dropout, layer in dropouts.items():
        now = living_connections(layer)
        dropout.p = adjusted_rate(rates[dropout], connections[layer], now)
