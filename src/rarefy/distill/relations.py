# SPDX-License-Identifier: Apache-2.0
"""Losses on how the examples of a batch lie to each other: pure functions on embeddings (B, d).

Student and teacher may have different d. `rarefy.loops.losses` holds the similarity-preserving loss.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def distances(x: Tensor) -> Tensor:
    """Pairwise Euclidean distances (B, B), divided by the mean over different examples."""
    d = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist")
    others = d.shape[0] * (d.shape[0] - 1)
    return d / (d.sum() / max(others, 1)).clamp(min=1e-12)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between relative distances.

    Park, Kim, Lu, Cho: Relational Knowledge Distillation, 2019, arXiv 1904.05068, equations 5 to 7.
    """
    return F.smooth_l1_loss(distances(student), distances(teacher))


def angles(x: Tensor) -> Tensor:
    """Cosines of the angles between x_i - x_j and x_k - x_j: (B, d) to (B, B, B), indices j, i, k."""
    difference = x.float().unsqueeze(0) - x.float().unsqueeze(1)  # (j, i, d)
    unit = F.normalize(difference, dim=2)
    return unit @ unit.mT


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of all triplets; Park et al. 2019, equations 8 to 10."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`distance_loss` plus twice the `angle_loss`; Park et al. 2019 weigh them 25 : 50."""
    return distance_loss(student, teacher) + 2 * angle_loss(student, teacher)


def correlation(x: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """The Gaussian kernel between examples of length one, by its Taylor series: (B, d) to (B, B).

    exp(-gamma · |x_i - x_j|²) = exp(-2 gamma) · Σ_p (2 gamma)^p / p! · (x_i · x_j)^p, up to p = `order`.
    """
    unit = F.normalize(x.float(), dim=1)
    products = unit @ unit.mT
    terms = [(2 * gamma) ** p / math.factorial(p) * products**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the examples' correlations.

    Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang: Correlation Congruence for Knowledge Distillation, 2019,
    arXiv 1904.01802, equations 6 and 9.
    """
    return F.mse_loss(correlation(student), correlation(teacher))


def affinity(x: Tensor, y: Tensor, temperature: float = 0.1) -> Tensor:
    """Logarithm of how x_i divides its attention among all y_j, by cosine: two (B, d) to (B, B)."""
    similarities = F.normalize(x.float(), dim=1) @ F.normalize(y.float(), dim=1).mT
    return F.log_softmax(similarities / temperature, dim=1)


def affinity_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], temperature: float = 0.1
) -> Tensor:
    """KL(teacher || student) of the affinities of paired embeddings, in both directions.

    Wu et al.: TinyCLIP, 2023, arXiv 2309.12314, equations 1 to 3 (affinity mimicking).

    Args:
        student, teacher: the embeddings of both sides of the same B pairs, as image and text.
    """
    losses = []
    for first, second in ((0, 1), (1, 0)):
        log_q = affinity(student[first], student[second], temperature)
        log_p = affinity(teacher[first], teacher[second], temperature)
        losses.append(F.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
    return 0.5 * (losses[0] + losses[1])


def closer(x: Tensor) -> Tensor:
    """Whether example j is nearer to i than k is, in squared distance: bool (i, j, k)."""
    d = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return d.unsqueeze(2) < d.unsqueeze(1)


def votes(teachers: Sequence[Tensor]) -> Tensor:
    """What most teachers say about `closer`; with a tie neither j nor k is called nearer."""
    said = torch.stack([closer(x) for x in teachers]).sum(0)
    return 2 * said > len(teachers)


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """The share of triplets about which two `closer` tables say the same."""
    return (one == other).float().mean()


def triplet_loss(student: Tensor, teachers: Sequence[Tensor], margin: float = 0.1) -> Tensor:
    """max(0, margin + d(i, j) - d(i, k)) over the triplets in which the teachers call j nearer than k.

    Triplets that the student orders by at least the margin cost nothing. Distances are relative to their
    mean, so that the margin means the same in every network.

    You, Xu, Xu, Tao: Learning from Multiple Teacher Networks, KDD 2017, section 3.2.

    Args:
        student: (B, d).
        teachers: one (B, d') each; their number of features may differ.
        margin: delta, as a share of the mean distance.
    """
    d = distances(student)
    wanted = votes(teachers)
    loss = (margin + d.unsqueeze(2) - d.unsqueeze(1)).relu()  # (i, j, k): d(i, j) against d(i, k)
    return (loss * wanted).sum() / wanted.sum().clamp(min=1)
