# SPDX-License-Identifier: Apache-2.0
"""Closed-form repair of a chain: its bias, or its whole last layer, by least squares on the layer's data."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.factorize.fold import Fold, Offset
from rarefy.factorize.kernel import groups
from rarefy.factorize.moments import by_groups, output_rows
from rarefy.loops.matrix import matrix_of, put_matrix, rows_of
from rarefy.loops.ridge import ridge_solve
from rarefy.select import Layer

Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Moments:
    """Sums over rows h and y that least squares from h to y needs, double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Any] = [0.0] * 4  # of h, y, h hᵀ, y hᵀ

    def update(self, h: Tensor, y: Tensor) -> None:
        """Takes rows (groups, N, n) and (groups, N, outputs) in."""
        parts = (h.sum(1), y.sum(1), h.mT @ h, y.mT @ h)
        self.sums = [held + part.double() for held, part in zip(self.sums, parts, strict=True)]
        self.count += h.shape[1]

    def means(self) -> list[Tensor]:
        """The sums divided by the number of rows."""
        return [total / max(self.count, 1) for total in self.sums]


def least_squares(
    moments: Moments, W: Tensor, damping: float, biased: bool
) -> tuple[Tensor, Tensor]:
    """The weight that predicts y from h best, held near W, and the bias that goes with it.

    Minimises the mean of |y - b - W' h|² + λ |W' - W|² with λ = damping · mean of h².

    Args:
        moments: of h (groups, n) and y (groups, outputs).
        W: (groups, outputs, n).
        damping: of the pull towards W.
        biased: whether b is free; else it is 0.
    """
    mean_h, mean_y, hh, yh = moments.means()
    if biased:
        hh = hh - mean_h.unsqueeze(2) * mean_h.unsqueeze(1)
        yh = yh - mean_y.unsqueeze(2) * mean_h.unsqueeze(1)
    start = W.double()
    found = start + ridge_solve(hh, (yh - start @ hh).mT, damping + 1e-10).mT
    bias = mean_y - (found @ mean_h.unsqueeze(2)).squeeze(2) if biased else torch.zeros_like(mean_y)
    return found, bias


@torch.no_grad()
def refit_last(
    chain: nn.Sequential, pairs: Pairs, bias: Tensor | None, damping: float, biased: bool
) -> None:
    """Solves the last layer of a chain anew, in place, for the outputs that it ought to give.

    Args:
        chain: whose last layer is linear or a convolution.
        pairs: gives inputs of the chain with the wanted outputs, call by call.
        bias: of the original layer, kept unless `biased`.
        damping: see `least_squares`.
        biased: whether the bias may change; one is added where there was none.
    """
    moments, last = Moments(), chain[-1]
    for x, y in pairs():
        h = by_groups(rows_of(last, chain[:-1](x)))
        wanted = y if bias is None or biased else y - along_channels(last, bias, y)
        moments.update(h, output_rows(last, wanted))
    layer = Layer("", last)
    W, b = least_squares(moments, by_groups(matrix_of(layer)), damping, biased)
    W = W if groups(last) > 1 else W[0]
    put_matrix(layer, W.to(layer.weight.dtype))
    if biased:
        set_bias(last, b.flatten())


@torch.no_grad()
def refit_bias(chain: nn.Sequential, pairs: Pairs) -> None:
    """Moves the bias of a chain, in place, so that the mean of its outputs is the wanted one."""
    total: Any = 0.0
    count, last = 0, chain[-1]
    for x, y in pairs():
        off = output_rows(last, y - chain(x))
        total = total + off.double().sum(1)
        count += off.shape[1]
    shift_bias(chain, (total / max(count, 1)).flatten())


def shift_bias(chain: nn.Sequential, by: Tensor) -> None:
    """Adds to the bias of a chain."""
    last = chain[-1]
    if isinstance(last, Fold):
        weight: nn.Parameter = chain[-2].weight  # type: ignore[assignment]
        chain.append(Offset(nn.Parameter(by.to(weight), requires_grad=weight.requires_grad)))
        return
    old: Tensor | None = last.bias  # type: ignore[assignment]
    moved = by if old is None else old.double() + by
    if isinstance(last, Offset):
        last.bias.copy_(moved)
    else:
        set_bias(last, moved)


def along_channels(module: nn.Module, bias: Tensor, y: Tensor) -> Tensor:
    """A bias shaped to add to an output."""
    nd = len(getattr(module, "kernel_size", ()))
    return bias.reshape(-1, *(1,) * nd)


def set_bias(module: nn.Module, value: Tensor) -> None:
    """Gives a layer a bias like its weight in type and training."""
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    module.bias = nn.Parameter(value.to(weight), requires_grad=weight.requires_grad)
