# SPDX-License-Identifier: Apache-2.0
"""Importance of single weights: tensors in, scores of the same shape out, larger = keep.

A criterion that reads gradients scores every batch by itself, and the scores are averaged: the mean of
absolute values, not the absolute value of a mean in which opposite gradients would cancel. At a trained
minimum gradients are near zero and say less than magnitudes do.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]


def magnitude(w: Tensor) -> Tensor:
    """|w|.

    Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015,
    arXiv 1506.02626.
    """
    return w.detach().abs()


def gradient(w: Tensor, g: Tensor) -> Tensor:
    """|g|, the slope of the loss, whatever the weight's size."""
    return g.abs()


def sensitivity(w: Tensor, g: Tensor) -> Tensor:
    """|g w|, the size of the loss's change to first order when the weight becomes zero.

    Mozer, Smolensky: Skeletonization, NIPS 1988; Lee, Ajanthan, Torr: SNIP, 2019, arXiv 1810.02340.
    """
    return (g * w.detach()).abs()


def taylor(w: Tensor, g: Tensor) -> Tensor:
    """(g w)², the square of the loss's change to first order.

    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, 2019,
    arXiv 1906.10771, equation 8.
    """
    return (g * w.detach()).square()


def fisher(w: Tensor, f: Tensor) -> Tensor:
    """f w² / 2, the loss's rise to second order; f is the diagonal of the Fisher information.

    Theis, Korshunova, Tejani, Huszár: Faster gaze prediction with dense networks and Fisher pruning, 2018,
    arXiv 1801.05787, equation 7.
    """
    return 0.5 * f * w.detach().square()


BY_GRADIENT: dict[str, Criterion] = {
    "gradient": gradient,
    "sensitivity": sensitivity,
    "taylor": taylor,
}


def mean_scores(
    criterion: Criterion, weights: Sequence[Tensor], gradients: Iterable[Sequence[Tensor]]
) -> list[Tensor]:
    """Averages a criterion over the batches.

    Args:
        criterion: ``(weight, gradient) -> score`` of one batch.
        weights: one tensor a layer.
        gradients: for every batch the gradients of all layers.

    Returns:
        One float64 tensor of scores a layer; they do not depend on the order of the batches beyond rounding.
    """
    sums = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    count = 0
    for batch in gradients:
        count += 1
        for total, w, g in zip(sums, weights, batch, strict=True):
            total += criterion(w, g)
    return [total / max(count, 1) for total in sums]
