# SPDX-License-Identifier: Apache-2.0
"""How much rounding a weight moves the network's outputs: second moments of inputs, gains of rows."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.loops.fisher import gather_fisher
from rarefy.loops.matrix import matrix_of
from rarefy.loops.modes import device_of
from rarefy.loops.walk import Visit
from rarefy.select import Layer
from rarefy.task import Inputs, call, logits_of, move


def gradient_energy(
    model: nn.Module, batches: Iterable[Inputs], layers: list[Layer], seed: int
) -> dict[str, Tensor]:
    """Mean squares of the gradients of random projections of the outputs, by layer, like the weights.

    Their mean over projections is the diagonal of the Gauss-Newton matrix of |outputs|² / 2.
    """
    generator = torch.Generator().manual_seed(seed)

    def paired() -> Iterator[tuple[Inputs, Tensor]]:
        for inputs in batches:
            with torch.no_grad():
                out = logits_of(call(model, move(inputs, device_of(model))))
            yield inputs, torch.randn(out.shape, generator=generator)

    def projected(outputs: Any, direction: Tensor) -> Tensor:
        return (logits_of(outputs) * direction).flatten(1).sum(1).mean()

    return gather_fisher(model, paired(), layers, projected).diagonal()


def moments_of(visit: Visit) -> tuple[Tensor, Tensor]:
    """Mean products (G, n, n) and means (G, n) of a layer's inputs.

    Where all inputs are zero, because what was rounded before gives nothing any more, they count as equally
    large and unrelated, so that the weights keep their proportions.
    """
    products, sums, count = None, None, 0
    for rows in visit.inputs():
        x = rows if rows.dim() == 3 else rows.unsqueeze(0)
        part, total = (x.mT @ x).double(), x.sum(1).double()
        products = part if products is None else products + part
        sums = total if sums is None else sums + total
        count += x.shape[1]
    assert products is not None
    assert sums is not None
    dead = products.diagonal(dim1=-2, dim2=-1).sum(-1) == 0
    products[dead] = torch.eye(products.shape[-1]).to(products)
    return products / count, sums / count


def row_gains(W: Tensor, energy: Tensor, H: Tensor) -> Tensor:
    """g_r = sum_j F_rj / sum_j H_jj, (G, r), kept above a thousandth of their mean."""
    found = energy.reshape(W.shape).sum(-1) / H.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    mean = found.mean().clamp(min=1e-30)
    return found.clamp(min=float(1e-3 * mean))


def grouped(matrix: Tensor) -> Tensor:
    """A layer's matrix with an axis of groups, (G, r, n)."""
    return matrix if matrix.dim() == 3 else matrix.unsqueeze(0)


def as_rows(layer: Layer, energy: Tensor) -> Tensor:
    """Values shaped like a layer's weight, in the order of its matrix, (G, r, n)."""
    twin = copy.copy(layer.module)
    twin._parameters = {layer.tensor: nn.Parameter(energy.to(layer.weight), requires_grad=False)}
    return grouped(matrix_of(replace(layer, module=twin)))
