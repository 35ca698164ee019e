# SPDX-License-Identifier: Apache-2.0
"""Importance of units that are cut together: tensors in, one score a unit out, larger = keep.

A unit is a channel, neuron or head with everything that is coupled to it (`rarefy.graph.coupling`). What is
computed from weights is `rarefy.prune.scores`' business; here it is brought from weights to units.
"""

import torch
from torch import Tensor

from rarefy.graph.groups import Group


def filters(group: Group, values: dict[str, Tensor]) -> Tensor:
    """Everything that gives each unit, one row a unit, float64, shape (size, weights of a unit).

    Args:
        group: of a coupling.
        values: parameter → its entries, or numbers for them; what is missing is left out. A unit with fewer
            weights than another has zeros at the end of its row.
    """
    parts = [torch.zeros(group.size, 0, dtype=torch.float64)]
    for member in group.members:
        if member.role != "out" or member.name not in values:
            continue
        every = values[member.name].detach().cpu().double().movedim(member.axis, 0)
        each = every.reshape(len(every), -1)[member.places]  # (m, weights of a position)
        order = member.units.argsort(stable=True)
        counts = torch.bincount(member.units, minlength=group.size)
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        rows = torch.zeros(group.size, int(counts.max()), each.shape[1], dtype=torch.float64)
        rows[member.units[order], within] = each[order]
        parts.append(rows.flatten(1))
    return torch.cat(parts, 1)


def l1(w: Tensor) -> Tensor:
    """Σ|w| of each unit's weights (units, n).

    Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710,
    section 3.1.
    """
    return w.abs().sum(1)


def l2(w: Tensor) -> Tensor:
    """The Euclidean norm of each unit's weights (units, n)."""
    return w.norm(dim=1)


def geometric_median(w: Tensor) -> Tensor:
    """How far each unit's weights (units, n) are from those of all others, Σ_j ‖w_i - w_j‖₂.

    The unit nearest to the geometric median can be replaced by the others. He, Liu, Wang, Hu, Yang: Filter
    Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, 2019,
    arXiv 1811.00250, equation 7.
    """
    return torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def joint_sensitivity(change: Tensor) -> Tensor:
    """|Σ g w|: the size of the loss's change to first order when all weights of a unit become zero.

    Args:
        change: Σ g w over each unit's weights, (units,).
    """
    return change.abs()


def joint_taylor(change: Tensor) -> Tensor:
    """(Σ g w)², the square of the loss's change to first order when a unit goes.

    Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, 2019,
    arXiv 1906.10771, equation 9.
    """
    return change.square()


def fisher(slopes: Tensor) -> Tensor:
    """Σ_n s_n² / 2 over the examples of a batch, shape (units,).

    Theis, Korshunova, Tejani, Huszár 2018, arXiv 1801.05787, equation 9; Liu, Zhang, Kuang, Zhou, Xue,
    Wang, Chen, Yang, Liao, Zhang: Group Fisher Pruning for Practical Network Compression, 2021,
    arXiv 2108.00708, equation 6.

    Args:
        slopes: of each example's own loss by a mask on the unit, added up over coupled layers, (B, units).
    """
    return 0.5 * slopes.square().sum(0)


def positive_share(x: Tensor) -> Tensor:
    """The share of values that are not zero, 1 - APoZ, from activations (B, channels, n) to (channels,).

    Hu, Peng, Tai, Tang: Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures, 2016, arXiv 1607.03250, equation 1.
    """
    return (x != 0).double().mean((0, 2))


def mean_ranks(maps: Tensor) -> Tensor:
    """The mean rank of each channel's feature map, from (B, channels, H, W) to (channels,).

    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao: HRank: Filter Pruning using High-Rank Feature Map, 2020,
    arXiv 2002.10179, equation 4.
    """
    return torch.linalg.matrix_rank(maps.float()).double().mean(0)


def normalise(scores: Tensor, how: str) -> Tensor:
    """A group's scores (units,) in units of their own, so that groups can be compared.

    Args:
        scores: not negative.
        how: ``"none"``, or divided by their ``"mean"``, ``"max"`` or Euclidean ``"norm"``. Scores that are
            all zero stay zero.
    """
    if how == "none":
        return scores
    unit = {"mean": scores.mean(), "max": scores.max(), "norm": scores.norm()}[how]
    return scores / unit if float(unit) > 0 else scores
