# SPDX-License-Identifier: Apache-2.0
"""Losses on the features of one pair of layers: pure functions, zero where student and teacher agree.

Features have the batch first and channels second, or last for tokens (B, T, C). `rarefy.loops.losses` holds
attention transfer, which the pruning room uses too.
"""

from torch import Tensor
from torch.nn import functional as F


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of features of one shape.

    Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets, 2015, arXiv 1412.6550, equation 3, as a mean.
    """
    return 0.5 * F.mse_loss(student.float(), teacher.float())


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - s · t / (|t| · max(|s|, |t|)): who points elsewhere or is shorter pays, who is longer does not.

    Wang, Cheng, Chen, Zhang: Improving Knowledge Distillation via Regularizing Feature Norm and Direction,
    2023, arXiv 2305.17007, equation 8, with each example's own teacher in the place of its class's mean.

    Args:
        student, teacher: (B, d).
    """
    s, t = student.float(), teacher.float()
    length, whole = s.norm(dim=1), t.norm(dim=1)
    longest = length.maximum(whole).clamp(min=1e-12)
    return (1 - (s * t).sum(1) / (whole.clamp(min=1e-12) * longest)).mean()


def selectivity(x: Tensor) -> Tensor:
    """Each channel's map of length one: (B, C, *space) to (B, C, positions)."""
    return F.normalize(x.float().flatten(2), dim=2)


def kernel_mean(x: Tensor, y: Tensor) -> Tensor:
    """The mean of (x_i · y_j)² over all i and j, for each example: (B, C, P) and (B, D, P) to (B,)."""
    return (x @ y.mT).square().mean((1, 2))


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels' maps, kernel (x · y)²; channels may differ.

    Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv
    1707.01219, equation 6 with the polynomial kernel of degree two.

    Args:
        student, teacher: (B, C, *space), of one space.
    """
    s, t = selectivity(student), selectivity(teacher)
    return (kernel_mean(s, s) + kernel_mean(t, t) - 2 * kernel_mean(s, t)).mean()


def channel_means(x: Tensor) -> Tensor:
    """What a channel gives on average: (B, C, *space) to (B, C); vectors stay as they are."""
    return x.float().flatten(2).mean(2) if x.dim() > 2 else x.float()


def channel_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the channels' averages.

    Ren, Wu, Xiao, Yang: Online Multi-Granularity Distillation for GAN Compression, 2021, arXiv 2108.06908,
    equation 6.

    Args:
        student, teacher: (B, C, …), C the same.
    """
    return F.mse_loss(channel_means(student), channel_means(teacher))
