# SPDX-License-Identifier: Apache-2.0
"""A unit that is a linear function of another is merged into it: y_j = a y_i + b on calibration data.

What reads unit j then reads a y_i + b: W[:, i] += a W[:, j], bias += b W[:, j], and j is cut. The pair that
costs the next layer least goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.loops.statistics import Covariance
from rarefy.prune.readers import Reader
from rarefy.prune.reconstruction import Reconstruction, Samples
from rarefy.step import Context, OpenFraction


@dataclass
class Regression:
    """Every unit as a linear function of every other, as one layer reads them.

    Attributes:
        slope: a of y_j = a y_i + b, (units i, units j).
        offset: b, (units i, units j).
        residual: mean of (y_j - a y_i - b)², (units i, units j); infinite for i = j.
    """

    slope: Tensor
    offset: Tensor
    residual: Tensor


def regress(mean: Tensor, covariance: Tensor) -> Regression:
    """Regressions of all units on all others.

    Args:
        mean: of each unit's values, (units,).
        covariance: (units, units).
    """
    variance = covariance.diagonal()
    still = variance <= 1e-12 * variance.max().clamp(
        min=1e-30
    )  # a constant says nothing of another
    slope = covariance / variance.masked_fill(still, torch.inf).unsqueeze(1)
    offset = mean.unsqueeze(0) - slope * mean.unsqueeze(1)
    residual = (variance.unsqueeze(0) - slope * covariance).clamp(min=0)
    return Regression(slope, offset, residual.fill_diagonal_(torch.inf))


def merge(
    matrices: Sequence[Tensor],
    columns: Sequence[Tensor],
    regressions: Sequence[Regression],
    number: int,
) -> tuple[list[tuple[int, int]], list[Tensor]]:
    """Merges units pair by pair, always the pair whose merger changes the layers' outputs least.

    Args:
        matrices: of the layers that read the units, (out, in); changed in place.
        columns: of each unit in each layer, (units, m).
        regressions: one a layer.
        number: of units to merge into others.

    Returns:
        The pairs (i, j), j merged into i, and what to add to the layers' biases, (out,) each.
    """
    shifts = [W.new_zeros(len(W)) for W in matrices]
    alive = torch.ones(len(columns[0]), dtype=torch.bool)
    pairs: list[tuple[int, int]] = []
    for _ in range(number):
        costs = torch.zeros(len(alive), len(alive), dtype=torch.float64)
        for W, places, fit in zip(matrices, columns, regressions, strict=True):
            weights = W[:, places].square().sum((0, 2))  # (units,) of what reads each
            costs += fit.residual * weights
        costs[~alive], costs[:, ~alive] = torch.inf, torch.inf
        costs.fill_diagonal_(torch.inf)
        i, j = divmod(int(costs.argmin()), len(alive))
        for W, places, fit, shift in zip(matrices, columns, regressions, shifts, strict=True):
            shift += fit.offset[i, j] * W[:, places[j]].sum(1)
            W[:, places[i]] += fit.slope[i, j] * W[:, places[j]]
            W[:, places[j]] = 0
        alive[j] = False
        pairs.append((i, j))
    return pairs, shifts


@dataclass(frozen=True)
class MergeNeurons(Reconstruction):
    """Merges neurons and channels that follow one another closely on unlabelled data.

    Attributes:
        sparsity: share of the units of every group that are merged into others.
        round_to, examples, samples, layers, exclude: see `rarefy.prune.reconstruction.Reconstruction`.
    """

    sparsity: OpenFraction = 0.3

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Regresses, merges and cuts, one layer after the other."""
        samples = Samples(self, context)

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            rows = samples.rows(model, readers)
            regressions = []
            for reader, x in zip(readers, rows, strict=True):
                moments = Covariance(axis=1)
                moments.update(reader.activations(x))
                regressions.append(regress(moments.mean, moments.covariance()))
            matrices, columns = [r.matrix for r in readers], [r.columns for r in readers]
            pairs, shifts = merge(matrices, columns, regressions, number)
            for reader, W, shift in zip(readers, matrices, shifts, strict=True):
                reader.put(W, shift)
            return torch.tensor([j for _, j in pairs])

        return self.prune(model, context, self.cutting(choose))
